"""Losses on the direct way: who takes it, and that it gives what the operators give."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, counts_of, normal
from tolerances import TOLERANCE, assert_close, error

from lt_kernels import losses, memory_budget
from lt_kernels.functional import (
    DBM,
    LDAM,
    ArcFace,
    CosFace,
    MixedTarget,
    SphereFace,
    cosine_margin_cross_entropy,
    lade_regularizer,
    linear_cross_entropy,
    offset_cross_entropy,
)
from lt_kernels.heads import CosineHead
from lt_kernels.ops import use_kernels
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
FLOATS = [torch.float32, torch.float64]
N, C, D = 9, 7, 5
COUNTS = counts_of(C, seed=3)


def is_direct(value):
    return value.grad_fn is not None and value.grad_fn.name() in (
        "RowsLossBackward",
        "FeaturesLossBackward",
        "LadeLossBackward",
    )


def problem(n=N, c=C, d=D, dtype=torch.float32):
    """Features, class weights and a bias, rounded to `dtype`; targets of which some are ignored."""
    sizes = [(n, d), (c, d), (c,)]
    leaves = [normal(*size, seed=11 + k, dtype=dtype).requires_grad_() for k, size in enumerate(sizes)]
    target = classes_of(n, c, seed=14)
    target[3::5] = -100
    return leaves, target


def tables(c, dtype=torch.float32):
    return {"weight": normal(c, seed=15, dtype=dtype).abs(), "offset": normal(c, seed=16, dtype=dtype)}


def as_the_operators(loss_of, leaves, exactly=False):
    """The direct way serves, with the operators' loss and gradients, for incoming ones of 1 and of another size."""

    def evaluate():
        loss = loss_of(*leaves)
        slopes = [torch.autograd.grad(loss, leaves, torch.full_like(loss, one), retain_graph=True) for one in (1, 0.3)]
        return loss, *slopes[0], *slopes[1]

    mine = evaluate()
    assert is_direct(mine[0]) or mine[0].dtype == torch.bfloat16  # rounded to it at the end
    with use_kernels("compiled"):
        theirs = evaluate()
    assert not is_direct(theirs[0])
    assert torch.equal(mine[0], theirs[0]) or not exactly
    for one, other in zip(mine, theirs, strict=True):  # made in one pass or in two
        assert_close(one, other.detach().double(), leaves[0].dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("size", [(6557, 5), (7, 5000), (40, 1023), (4, 1), (17, 100)])
def test_rows(size, gamma, reduction, dtype):
    """With tables of another dtype, and ignored rows."""
    given = {name: table.abs() for name, table in tables(size[1], torch.float64).items()}
    logits, target = normal(*size, seed=1, spread=3, dtype=dtype).requires_grad_(), problem(*size)[1]
    as_the_operators(
        lambda z: offset_cross_entropy(z, target, focal_gamma=gamma, reduction=reduction, **given),
        [logits],
        exactly=True,
    )


# One number, parts of vectors, whole ones with a rest; several chunks of rows, blocks of columns.
SHAPES = [(1, 1, 1), (9, 7, 5), (128, 100, 64), (40, 19, 131), (8, 3000, 17), (300, 1100, 120)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("size", SHAPES)
def test_cosines(size, reduction, dtype):
    """Classes that are not there, tables of another dtype, rows and classes of norm 0."""
    (x, w, _), target = problem(*size, dtype=dtype)
    classes = size[1]
    with torch.no_grad():
        x[-1], w[-1] = 0, 0
    absent = (torch.arange(classes) % 3 == 1) & (classes > 1)
    given = {"offset": normal(classes, seed=5).masked_fill(absent, -torch.inf), "reduction": reduction}
    given |= {"weight": given["offset"].exp() + 0.1, "margin": DBM(counts_of(classes, seed=6), 0.4), "scale": 9}
    target = torch.where(target < 0, target, target // 3 * 3)
    as_the_operators(lambda *some: cosine_margin_cross_entropy(*some, target, **given), [x, w])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("given", [(), ("weight",), ("offset",), ("weight", "offset")])
@pytest.mark.parametrize(
    "margin", [None, CosFace(0.3), ArcFace(0.6), LDAM(COUNTS, 0.4), DBM(COUNTS, 0.5, 0.3, 1.5, guard=True)]
)
def test_every_margin(margin, given, dtype):
    (x, w, _), target = problem(dtype=dtype)
    some = {name: table for name, table in tables(C, dtype).items() if name in given}
    for scale, gamma, reduction in ((1.0, 0.0, "mean"), (12.0, 1.5, "mean"), (12.0, 0.0, "sum"), (12.0, 2.0, "none")):
        options = {"margin": margin, "scale": scale, "focal_gamma": gamma, "reduction": reduction, **some}
        as_the_operators(lambda *two, o=options: cosine_margin_cross_entropy(*two, target, **o), [x, w])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("options", [{}, {"importance": "sample", "classes": "present", "lam": 0.7}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (128, 100), (150, 300), (70, 4100)])
def test_lade(size, options, kind, dtype):
    """Counts of any dtype; a class that is nowhere, and a logit that is infinite."""
    logits, target, counts = (
        normal(*size, seed=1, spread=3, dtype=dtype),
        classes_of(*size, seed=2),
        counts_of(size[1], 3),
    )
    for infinite in (False, True) if size[1] > 2 else (False,):
        if infinite:
            logits[:, 2], logits[2, 1] = -torch.inf, torch.inf
        as_the_operators(lambda z: lade_regularizer(z, target, counts.to(kind), **options), [logits.requires_grad_()])
        logits = logits.detach().clone()


HEADS = {
    "logits": lambda: losses.BalancedSoftmaxLoss(COUNTS),
    "batch counts": lambda: losses.ARBLoss(counts="batch"),
    "focal": lambda: losses.FocalLoss(1.5, normal(C, seed=9).abs()),
    "cosface": lambda: losses.CosFaceLoss(0.2, 16.0),
    "arcface": lambda: losses.ArcFaceLoss(0.3, 16.0, reduction="sum"),
    "ldam": lambda: losses.LDAMLoss(COUNTS, weight=normal(C, seed=9).abs()),
    "dbm": lambda: losses.DBMLoss(COUNTS, 0.4, base="bs"),
    "dbm, weights, mean of rows": lambda: losses.DBMLoss(COUNTS, 0.4, base="cb", average="batch"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    """A mean of rows divides by their number and not by their weights, whoever computes it."""
    head, target = CosineHead(D, C, HEADS[name](), scale=7.0), classes_of(N, C, seed=4)
    as_the_operators(lambda x, _: head(x, target), [problem()[0][0], head.weight])


def by_torch(leaves, target, weight=None, offset=None, reduction="mean", kind=torch.float64):
    """The loss of features and its gradients by plain torch, with the numbers as they are."""
    wide = [leaf.detach().to(kind).requires_grad_() for leaf in leaves]
    u = F.linear(*wide) if offset is None else F.linear(*wide) + offset.to(kind)
    loss = F.cross_entropy(u, target, None if weight is None else weight.to(kind), reduction=reduction)
    return [loss.detach(), *torch.autograd.grad(loss, wide)]


def linear(leaves, target, **options):
    return linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2] if len(leaves) > 2 else None, **options)


SIZES = [(1, 4, 1), (2, 8, 8), (7, 9, 9), (16, 16, 16), (17, 31, 15), (33, 5, 17), (6, 64, 65), (48, 12, 33)]
SIZES += [(64, 50, 48), (49, 100, 70), (97, 101, 26), (130, 13, 63), (128, 100, 16), (300, 10, 11), (9, 1024, 12)]
SIZES += [(31, 15, 300), (700, 8, 9)]  # sums of more products than are taken at once
SIZES += [(33, 21, 0)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear(size, reduction, dtype):
    """With bias and tables, or none; they err no more than torch's own, but for the tolerance."""
    leaves, target = problem(*size, dtype=dtype)
    leaves[0] = (2 * leaves[0] / max(size[2], 1) ** 0.5).detach().requires_grad_()
    for some, options in ((leaves, tables(size[1], dtype)), (leaves[:2], {}), (leaves, {})):
        mine = linear(some, target, reduction=reduction, **options)
        assert is_direct(mine)
        found = [mine, *torch.autograd.grad(mine, some)]
        exact, theirs = (by_torch(some, target, **options, reduction=reduction, kind=k) for k in (torch.float64, dtype))
        for ours, other, truth in zip(found, theirs, exact, strict=True):
            assert error(ours, truth) <= error(other, truth) + TOLERANCE[dtype]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_stays_so(value, place):
    """The loss is finite where torch's is and nowhere else, a gradient at least where torch's is."""
    leaves, target = problem(33, 21, 18)
    target.clamp_(min=0)
    with torch.no_grad():
        leaves[place].view(-1)[5] = value
    mine = linear(leaves, target, reduction="sum")
    exact = by_torch(leaves, target, reduction="sum")
    assert mine.isfinite() == exact[0].isfinite()
    for one, other in zip(torch.autograd.grad(mine, leaves), exact[1:], strict=True):
        assert (one.isfinite() | ~other.isfinite()).all()


def test_who_takes_the_direct_way():
    """Who asks for kernels gets them; operators serve beyond the memory budget, and what is no loss of a row."""
    (x, w, _), target = problem()
    target.clamp_(min=0)
    cosines = cosine_margin_cross_entropy
    for call in (lambda: linear_cross_entropy(x, w, target), lambda: cosines(x, w, target, scale=8, focal_gamma=1)):
        with memory_budget(2 * N * C * 4 - 1):
            assert not is_direct(call())
        assert is_direct(call())
        for wing in ("compiled", "reference"):
            with use_kernels(wing):
                assert not is_direct(call())
        assert is_direct(call())
    assert not is_direct(cosines(x, w, target, margin=SphereFace(2)))
    assert not is_direct(cosines(x, w, MixedTarget(target, target, 0.5)))
    for loss in (losses.SphereFaceLoss(2), losses.LADELoss(COUNTS)):
        assert not is_direct(CosineHead(D, C, loss)(x, target))


def test_two_classes_by_hand():
    """Cosines 1 and 0, margin 1/2: the target's logit is 2 (1 - 1/2), the other's 0."""
    x, w = torch.tensor([[3.0, 0.0]], requires_grad=True), torch.tensor([[0.5, 0.0], [0.0, 7.0]], requires_grad=True)
    loss = cosine_margin_cross_entropy(x, w, torch.tensor([0]), margin=CosFace(0.5), scale=2.0)
    assert loss.item() == pytest.approx(0.313261687518)  # log(1 + 1 / e)
    # 1 / (1 + e) of the scale 2 goes to the other class, whose cosine grows by 1/3 along the second axis of x
    (slope,) = torch.autograd.grad(loss, x)
    assert slope[0].tolist() == pytest.approx([0.0, 2 / 3 * 0.268941421370], abs=1e-7)


def test_two_rows_by_hand():
    """p = (3/4, 1/4), B_c = log((1 + e) / 2) - log(2 p_c) in both, lam = 0; the rows' targets have logits 1 and 0."""
    logits = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    value = lade_regularizer(logits, torch.tensor([0, 1]), torch.tensor([3, 1]), lam=0)
    bound = math.log((1 + math.e) / 2) - 0.75 * math.log(1.5) - 0.25 * math.log(0.5)
    assert float(value) == pytest.approx(bound - 0.75, abs=1e-7)  # the code's 1e-8 and 1e-9


@pytest.mark.parametrize("size", [1e-14, 1e-9, 1e15])
def test_a_cosine_does_not_change_with_the_length(size):
    """The gradient is orthogonal to each row and falls with its length; a row too short for a direction has none."""
    (x, w, _), target = problem()
    long = (size * x.detach()).requires_grad_()
    values = [cosine_margin_cross_entropy(one, w, target, margin=ArcFace(0.5)) for one in (x, long)]
    slopes = [torch.autograd.grad(value, one)[0] for value, one in zip(values, (x, long), strict=True)]
    if size > 1e-12:
        assert_close(values[1], values[0].detach().double())
        assert_close(size * slopes[1], slopes[0].double())
    else:
        assert (slopes[1] == 0).all()
        flat = cosine_margin_cross_entropy(long, w, target, scale=8.0).detach()
        assert_close(flat, torch.tensor(C, dtype=torch.float64).log())  # all cosines are 0
    along = (slopes[0] * x).sum(1).abs() / (slopes[0].norm(dim=1) * x.norm(dim=1)).clamp_min(1e-30)
    assert along.max() < 1e-5


def test_autocast_casts_the_features_of_few_logits():
    (x, w, _), target = problem()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, w, target)
    exact = F.cross_entropy(F.linear(x.double(), w.double()), target)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) > 1e-6  # in bfloat16, as asked
    assert_close(loss, exact, torch.bfloat16)


def test_other_threads_run_while_many_rows_are_worked_on():
    """A thread that wakes every millisecond is not held up for the length of a call (unless the machine is busy)."""
    logits, target = torch.zeros(4096, 8142), torch.zeros(4096, dtype=torch.int64)
    offset_cross_entropy(logits[:64], target[:64])
    ticks, state = [], SimpleNamespace(stop=False)

    def tick():
        while not state.stop:
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    watch = threading.Thread(target=tick)
    watch.start()
    while not ticks:
        time.sleep(0.001)
    most = 0
    for _ in range(20):
        before = time.perf_counter()
        offset_cross_entropy(logits, target)
        after = time.perf_counter()
        most = max(most, sum(before < moment < after for moment in ticks))
    state.stop = True
    watch.join()
    assert most >= 2, after - before
