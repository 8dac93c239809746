"""LADE's regulariser on the direct way: who takes it, its values and graphs."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import classes_of, counts_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.functional import lade_regularizer, offset_cross_entropy
from lt_kernels.losses import LADELoss
from lt_kernels.ops import use_kernels
from lt_kernels.ops.backends import library
from lt_kernels.priors import log_prior
from lt_kernels.regularizers import LADERegularizer

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
N, C = 9, 7
FLOATS = [torch.float32, torch.float64]
# One row and one class, a part of a vector, whole ones with a rest, several chunks of rows and blocks of columns.
SIZES = [(1, 1), (3, 5), (128, 100), (150, 300), (70, 4100)]


def problem(n=N, c=C, dtype=torch.float32):
    return normal(n, c, seed=1, spread=3, dtype=dtype).requires_grad_(), classes_of(n, c, seed=2), counts_of(c, seed=3)


def is_direct(value: Tensor | None) -> bool:
    return value is not None and value.grad_fn is not None and value.grad_fn.name() == "LadeLossBackward"


def formula(z: Tensor, target: Tensor, counts: Tensor, lam: float, importance: str, classes: str) -> Tensor:
    """sum_c p_c (-A_c + B_c + lam B_c^2), class by class as the paper has it, with the code's constants."""
    rows, width = z.shape
    prior, total = counts.double() / counts.double().sum(), z.new_zeros(())
    for c in range(width):
        mine = (target == c).nonzero()[:, 0]
        if classes == "present" and not len(mine):
            continue
        seen = prior[c].expand(rows) if importance == "class" else prior[target]
        bound = (z[:, c].exp() * (1 / width + 1e-9) / (seen + 1e-9)).sum().log() - math.log(rows)
        total = total + prior[c] * (bound + lam * bound**2 - z[mine, c].sum() / (len(mine) + 1e-8))
    return total


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", ["all", "present"])
@pytest.mark.parametrize("importance", ["class", "sample"])
def test_it_is_the_papers_sum(importance, classes, dtype):
    logits, target, counts = problem(12, 20, dtype)
    target = target.clamp(max=11)  # some classes are not in the batch
    value = lade_regularizer(logits, target, counts, lam=0.3, importance=importance, classes=classes)
    assert is_direct(value)
    wide = logits.detach().double().requires_grad_()
    exact = formula(wide, target, counts, 0.3, importance, classes)
    assert_close(value, exact.detach())
    assert_close(*(torch.autograd.grad(*pair)[0] for pair in ((value, logits), (exact, wide))))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_the_operators_give(size, kind, dtype):
    """Within what two ways of summing [C] and [N] numbers differ by; also for an incoming gradient that is not 1."""
    logits, target, counts = problem(*size, dtype=dtype)
    for options in ({}, {"importance": "sample", "classes": "present", "lam": 0.7}):

        def evaluate(options=options) -> tuple[Tensor, ...]:
            value = lade_regularizer(logits, target, counts.to(kind), **options)
            slopes = (torch.autograd.grad(value, logits, value.new_tensor(x), retain_graph=True)[0] for x in (1, -0.3))
            return value.detach(), *slopes

        mine = evaluate()
        with use_kernels("compiled"):
            theirs = evaluate()
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one, other.double())


def test_two_rows_by_hand():
    """p = (3/4, 1/4), B_c = log((1 + e) / 2) - log(2 p_c) in both, lam = 0; the rows' targets have logits 1 and 0."""
    logits = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    value = lade_regularizer(logits, torch.tensor([0, 1]), torch.tensor([3, 1]), lam=0)
    bound = math.log((1 + math.e) / 2) - 0.75 * math.log(1.5) - 0.25 * math.log(0.5)
    assert float(value) == pytest.approx(bound - 0.75, abs=1e-7)  # the code's 1e-8 and 1e-9


def test_infinite_logits_are_what_the_operators_make_of_them():
    logits, target, counts = problem()
    with torch.no_grad():
        logits[:, 2], logits[3, 1] = -torch.inf, torch.inf

    def evaluate() -> tuple[Tensor, Tensor]:
        value = lade_regularizer(logits, target, counts)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    mine = evaluate()
    with use_kernels("compiled"):
        theirs = evaluate()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, equal_nan=True)


def test_who_takes_the_direct_way():
    logits, target, counts = problem()
    assert is_direct(lade_regularizer(logits, target, counts, lam=1))
    assert is_direct(lade_regularizer(logits, target, counts.tolist()))
    assert is_direct(LADERegularizer(counts)(logits, target))
    with use_kernels("compiled"):
        assert not is_direct(lade_regularizer(logits, target, counts))
    assert not is_direct(lade_regularizer(logits.bfloat16(), target, counts))


@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_graphs_kept_and_used_again(factor):
    logits, target, counts = problem()
    loss = factor * lade_regularizer(logits, target, counts)
    wide = logits.detach().double().requires_grad_()
    exact = torch.autograd.grad(factor * formula(wide, target, counts, 0.1, "class", "all"), wide)[0]
    for keep in (True, True, False):
        (found,) = torch.autograd.grad(loss, logits, retain_graph=keep)
        assert_close(found, exact)
        found.zero_()  # somebody's own tensor
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)
    many = torch.eye(2, dtype=torch.float32)[0] - 0.5
    value = lade_regularizer(logits, target, counts)
    (both,) = torch.autograd.grad(value, logits, many, is_grads_batched=True)
    assert_close(factor * 2 * both[0], exact)
    assert_close(factor * 2 * both[1], -exact)


def test_second_derivatives_are_an_error():
    logits, target, counts = problem()
    (slope,) = torch.autograd.grad(lade_regularizer(logits, target, counts), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="_times has no derivative of its own"):
        slope.sum().backward()


def test_nothing_of_the_callers_is_written_to():
    logits, target, counts = problem()
    before = [value.detach().clone() for value in (logits, target, counts)]
    lade_regularizer(logits, target, counts).backward()
    assert all(torch.equal(*pair) for pair in zip(before, (logits, target, counts), strict=True))
    assert lade_regularizer(logits.detach(), target, counts).grad_fn is None


@pytest.mark.parametrize("alpha", [0.1, 1.0, 0.0])
@pytest.mark.parametrize("apart", [True, False])
def test_the_named_loss_is_the_sum_of_its_two_terms(alpha, apart):
    logits, target, counts = problem()
    given = logits.bfloat16().float().t().contiguous().t() if apart else logits
    loss = LADELoss(counts, alpha, lam=0.4, importance="sample")(given, target)
    exact = offset_cross_entropy(given.double(), target, offset=log_prior(counts))
    exact = exact + alpha * formula(given.double(), target, counts, 0.4, "sample", "all")
    assert_close(loss, exact.detach())
    slopes = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, exact))
    assert_close(*slopes)
