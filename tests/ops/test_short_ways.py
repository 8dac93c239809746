"""The short ways on a CPU, past the dispatcher: who takes them, and that they give what the operators give."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import assert_close
from torch.overrides import TorchFunctionMode

from lt_kernels import memory_budget
from lt_kernels.functional import linear_cross_entropy, offset_cross_entropy
from lt_kernels.ops import library, use_kernels
from lt_kernels.ops.plain import PlainLoss

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
FLOATS = [torch.float32, torch.float64]
N, C, D = 6, 5, 4
LONG = (2**15 // C + 3, C)  # more logits than torch's own function gets


def problem(n=N, c=C, dtype=torch.float32):
    return normal(n, c, seed=1, spread=3, dtype=dtype).requires_grad_(), classes_of(n, c, seed=2)


def few(logits, target, weight=None, offset=None, gamma=0.0, smoothing=0.0, ignore=-100, reduction="mean", most=2**15):
    settings = (gamma, smoothing, ignore, reduction, most)
    return library.few_cross_entropy(logits, target, weight, offset, *settings, PlainLoss.apply)


def graph(value):
    """The names of the autograd nodes behind a value, its own first."""
    found, node = [], value.grad_fn
    while node is not None:
        found.append(node.name())
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    return found


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("tables", [(), ("weight",), ("offset",), ("weight", "offset")])
def test_few_smoothed_logits_are_torchs_cross_entropy_to_the_bit(dtype, reduction, tables):
    logits, target = problem(dtype=dtype)
    given = {name: normal(C, seed=7, dtype=dtype).abs().requires_grad_(name == "offset") for name in tables}
    leaves = [logits, *(given[name] for name in ("offset",) if name in given)]
    mine = few(logits, target, given.get("weight"), given.get("offset"), 0.0, 0.3, -100, reduction)
    shifted = logits + given["offset"] if "offset" in given else logits
    theirs = F.cross_entropy(shifted, target, given.get("weight"), reduction=reduction, label_smoothing=0.3)
    assert torch.equal(mine, theirs)
    for one, other in zip(*(torch.autograd.grad(value.sum(), leaves) for value in (mine, theirs)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_few_linear_logits_are_those_of_torchs_product_to_the_bit(smoothing):
    x, w, b = (
        normal(*size, seed=3 + len(size), dtype=torch.float32).requires_grad_() for size in ((N, D), (C, D), (C,))
    )
    target = classes_of(N, C, seed=2)
    for bias in (None, b):
        mine = linear_cross_entropy(x, w, target, linear_bias=bias, label_smoothing=smoothing)
        loss_of = F.cross_entropy if smoothing else offset_cross_entropy
        theirs = loss_of(F.linear(x, w, bias), target, label_smoothing=smoothing)
        assert graph(mine)[0] == ("AddBackward0" if smoothing else "LinearLossBackward")
        assert torch.equal(mine, theirs)
        leaves = [x, w] if bias is None else [x, w, b]
        for one, other in zip(*(torch.autograd.grad(value, leaves) for value in (mine, theirs)), strict=True):
            assert torch.equal(one, other)


class Subclass(torch.Tensor):
    """Any tensor of somebody else's."""


UNUSUAL = {
    "bfloat16": lambda z, y: few(z.bfloat16(), y),
    "three dimensions": lambda z, y: few(z[:, :, None], y[:, None]),
    "one dimension": lambda z, y: few(z[0], y[0]),
    "no rows": lambda z, y: few(z[:0], y[:0]),
    "no classes": lambda z, y: few(z[:, :0], y),
    "smoothed, more than few": lambda z, y: few(z, y, smoothing=0.1, most=N * C - 1),
    "subclass": lambda z, y: few(z.detach().as_subclass(Subclass), y),
    "no tensor": lambda z, y: few(z.tolist(), y),
    "another device": lambda z, y: few(z.detach().to("meta"), y),
    "probabilities": lambda z, y: few(z, z.detach().softmax(1)),
    "int32 target": lambda z, y: few(z, y.int()),
    "target of another length": lambda z, y: few(z, y[:3]),
    "target of another shape": lambda z, y: few(z, y[:, None]),
    "target on another device": lambda z, y: few(z, y.to("meta")),
    "target too large": lambda z, y: few(z, torch.full_like(y, C)),
    "target negative": lambda z, y: few(z, torch.full_like(y, -1)),
    "ignore_index a class": lambda z, y: few(z, y, ignore=0),
    "ignore_index a bool": lambda z, y: few(z, y, ignore=False),
    "ignore_index a float": lambda z, y: few(z, y, ignore=-1.0),
    "focal": lambda z, y: few(z, y, gamma=2.0),
    "gamma an int": lambda z, y: few(z, y, gamma=0),
    "gamma not a number": lambda z, y: few(z, y, gamma=float("nan")),
    "smoothing too large": lambda z, y: few(z, y, smoothing=1.5),
    "smoothing negative": lambda z, y: few(z, y, smoothing=-0.1),
    "smoothing not a number": lambda z, y: few(z, y, smoothing=float("nan")),
    "smoothing a tensor": lambda z, y: few(z, y, smoothing=torch.zeros(C)),
    "reduction unknown": lambda z, y: few(z, y, reduction="average"),
    "reduction None": lambda z, y: few(z, y, reduction=None),
    "weight of another length": lambda z, y: few(z, y, torch.ones(C + 1)),
    "weight of another dtype": lambda z, y: few(z, y, torch.ones(C, dtype=torch.float64)),
    "offset to be broadcast": lambda z, y: few(z, y, None, torch.ones(1)),
    "offset per row": lambda z, y: few(z, y, None, torch.ones(N, C)),
    "offset of another dtype": lambda z, y: few(z, y, None, torch.ones(C, dtype=torch.float64)),
    "offset on another device": lambda z, y: few(z, y, None, torch.ones(C, device="meta")),
    "offset -inf at a target": lambda z, y: few(z, y, None, torch.full((C,), -torch.inf)),
    "each loss: offset -inf at one": lambda z, y: few(
        z, y, None, torch.where(torch.arange(C) == y[-1], -torch.inf, 0.0), reduction="none"
    ),
    "too few arguments": lambda z, y: library.few_cross_entropy(z, y),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_whatever_is_unusual_is_left_to_the_operators(name):
    assert UNUSUAL[name](*problem()) is None


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_absent_class_that_is_no_target_stays_here(reduction):
    logits, target = problem()
    offset = torch.where(torch.arange(C) == C - 1, -torch.inf, 0.0)
    loss = few(logits, target.clamp(max=C - 2), None, offset, reduction=reduction)
    assert loss is not None
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[:, -1] == 0).all()


def test_who_asks_for_kernels_gets_them():
    logits, target = problem()
    assert graph(offset_cross_entropy(logits, target))[0] == "PlainLossBackward"
    with use_kernels("compiled"):
        assert "RowLoss" in graph(offset_cross_entropy(logits, target))[0]
        with use_kernels("reference"):
            assert few(logits, target) is None
        assert few(logits, target) is None
    assert few(logits, target) is not None


def test_the_memory_budget_counts_few_logits_too():
    x, w = normal(N, D, seed=1, dtype=torch.float32).requires_grad_(), normal(C, D, seed=2, dtype=torch.float32)
    target = classes_of(N, C, seed=2)
    with memory_budget(N * C * 8 - 1):
        names = graph(linear_cross_entropy(x, w, target))
    assert "LinearLossBackward" not in names
    assert "LinearLossBackward" in graph(linear_cross_entropy(x, w, target))


def test_autocast_casts_the_features_of_few_logits():
    x, w = normal(N, D, seed=1, dtype=torch.float32), normal(C, D, seed=2, dtype=torch.float32)
    target = classes_of(N, C, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, w, target)
    exact = F.cross_entropy(F.linear(x.double(), w.double()), target)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) > 1e-6  # in bfloat16, as asked
    assert_close(loss, exact, torch.bfloat16)


def test_a_mode_sees_the_calls():
    names = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    logits, target = problem()
    with Watch():
        offset_cross_entropy(logits, target, label_smoothing=0.1)
    assert "cross_entropy_loss" in names


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("size", [LONG, (7, 5000), (40, 1023), (4, 1), (17, 100)])
def test_plain_rows_are_the_operators_to_the_bit(dtype, reduction, gamma, size):
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
    assert graph(mine[0])[0].startswith("PlainLoss") or dtype == torch.bfloat16  # rounded to it at the end
    with use_kernels("compiled"):
        theirs = evaluate()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)


def test_plain_rows_that_lie_apart():
    wide = normal(40, 3000, seed=1, dtype=torch.float32)
    target, offset = classes_of(80, 1000, seed=2)[::2], normal(2000, seed=3, dtype=torch.float32)[::2]
    for logits in (wide[:, 1000:2000], wide[:, ::3], wide.t()[:1000].t()):
        leaf = logits.detach().requires_grad_()
        loss = offset_cross_entropy(leaf, target, offset=offset)
        assert graph(loss)[0] == "PlainLossBackward"
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
    with pytest.raises(TypeError, match="8 arguments"):
        library.plain_forward(1)
    with pytest.raises(AttributeError):
        library.plain_forward(*"abcdefgh")
    with pytest.raises(TypeError, match="2 arguments"):
        library.plain_backward(1)
    with pytest.raises(TypeError, match="float32, float64 or bfloat16"):
        PlainLoss.apply(logits.half(), target, None, None, 0.0, -100, 1)


def test_other_threads_run_while_many_rows_are_worked_on():
    """A thread that wakes every millisecond is not held up for the length of a call."""
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
    before = time.perf_counter()
    ctx = SimpleNamespace(needs_input_grad=(False,))
    PlainLoss.forward(ctx, logits, target, None, None, 0.0, -100, 1)
    after = time.perf_counter()
    state.stop = True
    watch.join()
    assert sum(before < moment < after for moment in ticks) >= 2, after - before


def test_an_interrupt_is_not_taken_for_an_unusual_call():
    class Interrupt(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function.__name__ in ("empty_like", "cross_entropy_loss"):
                raise KeyboardInterrupt
            return function(*args, **(kwargs or {}))

    for smoothing in (0.0, 0.1):
        with Interrupt(), pytest.raises(KeyboardInterrupt):
            offset_cross_entropy(*problem(), label_smoothing=smoothing)
