"""Losses of logits on the direct way: who takes it, and that it gives what the operators give."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import assert_close

from lt_kernels import memory_budget
from lt_kernels.functional import linear_cross_entropy, offset_cross_entropy
from lt_kernels.ops import use_kernels
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
FLOATS = [torch.float32, torch.float64]
N, C, D = 6, 5, 4
LONG = (2**15 // C + 3, C)  # more logits than torch's own function gets


def problem(n=N, c=C, dtype=torch.float32):
    return normal(n, c, seed=1, spread=3, dtype=dtype).requires_grad_(), classes_of(n, c, seed=2)


def graph(value):
    """The names of the autograd nodes behind a value, its own first."""
    found, node = [], value.grad_fn
    while node is not None:
        found.append(node.name())
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    return found


def test_who_asks_for_kernels_gets_them():
    logits, target = problem()
    assert graph(offset_cross_entropy(logits, target))[0] == "RowsLossBackward"
    for wing in ("compiled", "reference"):
        with use_kernels(wing):
            assert "RowLossBackward" in graph(offset_cross_entropy(logits, target))
    assert graph(offset_cross_entropy(logits, target))[0] == "RowsLossBackward"


def test_the_memory_budget_counts_few_logits_too():
    x, w = normal(N, D, seed=1, dtype=torch.float32).requires_grad_(), normal(C, D, seed=2, dtype=torch.float32)
    target = classes_of(N, C, seed=2)
    with memory_budget(N * C * 8 - 1):
        names = graph(linear_cross_entropy(x, w, target))
    assert "FeaturesLossBackward" not in names
    assert "FeaturesLossBackward" in graph(linear_cross_entropy(x, w, target))


def test_autocast_casts_the_features_of_few_logits():
    x, w = normal(N, D, seed=1, dtype=torch.float32), normal(C, D, seed=2, dtype=torch.float32)
    target = classes_of(N, C, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, w, target)
    exact = F.cross_entropy(F.linear(x.double(), w.double()), target)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) > 1e-6  # in bfloat16, as asked
    assert_close(loss, exact, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("size", [LONG, (7, 5000), (40, 1023), (4, 1), (17, 100)])
def test_plain_rows_are_what_the_operators_give(dtype, reduction, gamma, size):
    """Values, and gradients for an incoming one of 1 and of another size, with tables and ignored rows."""
    logits, target = problem(*size, dtype=dtype)
    target[3] = -100
    tables = {name: normal(size[1], seed=9 + len(name)).abs() for name in ("weight", "offset")}

    def evaluate():
        loss = offset_cross_entropy(logits, target, focal_gamma=gamma, reduction=reduction, **tables)
        first, second = (
            torch.autograd.grad(loss, logits, torch.full_like(loss, one), retain_graph=True)[0] for one in (1.0, 0.3)
        )
        return loss, first, second

    mine = evaluate()
    assert graph(mine[0])[0] == "RowsLossBackward" or dtype == torch.bfloat16  # rounded to it at the end
    with use_kernels("compiled"):
        theirs = evaluate()
    assert torch.equal(mine[0], theirs[0])
    for one, other in zip(mine[1:], theirs[1:], strict=True):  # made in one pass or in two
        assert_close(one, other.double(), dtype)


def test_plain_rows_that_lie_apart():
    wide = normal(40, 3000, seed=1, dtype=torch.float32)
    target, offset = classes_of(80, 1000, seed=2)[::2], normal(2000, seed=3, dtype=torch.float32)[::2]
    for logits in (wide[:, 1000:2000], wide[:, ::3], wide.t()[:1000].t()):
        leaf = logits.detach().requires_grad_()
        loss = offset_cross_entropy(leaf, target, offset=offset)
        assert graph(loss)[0] == "RowsLossBackward"
        (gradient,) = torch.autograd.grad(loss, leaf)
        dense = logits.contiguous().requires_grad_()
        assert torch.equal(loss, offset_cross_entropy(dense, target, offset=offset))
        assert torch.equal(gradient, torch.autograd.grad(offset_cross_entropy(dense, target, offset=offset), dense)[0])


def test_plain_rows_keep_the_rules_of_a_graph():
    logits, target = problem(*LONG)
    loss = offset_cross_entropy(logits, target)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    first.zero_()  # somebody's own tensor
    second = torch.autograd.grad(loss, logits)[0]
    assert second.abs().sum() > 0
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)
    loss = offset_cross_entropy(logits, target, focal_gamma=1.0)
    (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="no derivative of its own"):
        slope.sum().backward()
    with torch.no_grad():
        assert offset_cross_entropy(logits, target).grad_fn is None
    loss = offset_cross_entropy(logits, target)
    assert torch.autograd.grad(loss * 0, logits)[0].abs().sum() == 0


def test_plain_rows_name_what_is_wrong():
    logits, target = problem(*LONG)
    with pytest.raises(IndexError, match=f"target holds {C}"):
        offset_cross_entropy(logits, torch.full_like(target, C))
    absent = torch.where(torch.arange(C) == target[5], -torch.inf, 0.0)
    with pytest.raises(ValueError, match="offset is -inf for class"):
        offset_cross_entropy(logits, target, offset=absent)


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
