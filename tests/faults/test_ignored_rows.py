"""Ignored rows have a gradient of exactly 0 whatever comes back to the loss: infinity, NaN, or 0 / 0 of a mean of none.

That is what F.cross_entropy gives, alone and after F.linear. Whoever divides a sum by the number of valid items meets
it, and so does a plain mean of a batch without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, heads, losses, memory_budget
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

AS_SHIPPED = True  # small inputs may take another way than the operators
pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),  # torch.compile's
]

N, C, D = 6, 9, 8
COUNTS = torch.arange(1.0, C + 1)
ROWS = [1, 4]  # ignored, where not all are
Case = Callable[[dict[str, Tensor], Any, Any], Tensor]


def leaves(dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that may have a gradient."""
    shapes = {"x": (N, D), "w": (C, D), "b": (C,), "z": (N, C), "o": (C,), "rows": (N, C), "table": (C, C)}
    made = {name: normal(*shape, seed=seed, dtype=dtype) for seed, (name, shape) in enumerate(shapes.items())}
    return {name: value.requires_grad_() for name, value in made.items()}


def target(every: bool) -> Tensor:
    """Class indices [N], all or some of them ignored."""
    return torch.full((N,), -100) if every else classes_of(N, C, 7).index_fill(0, torch.tensor(ROWS), -100)


def mixed(target: Tensor) -> MixedTarget:
    """Two targets a row, which are ignored together."""
    return MixedTarget(target, torch.where(target < 0, target, (target + 1) % C), 0.3)


def logits(**options: Any) -> Case:
    return lambda t, y, how: functional.offset_cross_entropy(t["z"], y, reduction=how, **_named(options, t))


def linear(**options: Any) -> Case:
    def case(t: dict[str, Tensor], y: Any, how: Any) -> Tensor:
        return functional.linear_cross_entropy(t["x"], t["w"], y, reduction=how, **_named(options, t))

    return case


def cosine(**options: Any) -> Case:
    def case(t: dict[str, Tensor], y: Any, how: Any) -> Tensor:
        return functional.cosine_margin_cross_entropy(t["x"], t["w"], y, reduction=how, **_named(options, t))

    return case


def _named(options: dict[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """Options, a leaf in the place of its name."""
    return {key: leaves[value] if isinstance(value, str) else value for key, value in options.items()}


def as_mixed(case: Case) -> Case:
    return lambda t, y, how: case(t, mixed(y), how)


def within(case: Case, budget: int) -> Case:
    """With so many bytes for logits: by slabs or groups."""

    def limited(t: dict[str, Tensor], y: Any, how: Any) -> Tensor:
        with memory_budget(budget):
            return case(t, y, how)

    return limited


def from_loss(make: Callable[..., Any], **options: Any) -> Case:
    return lambda t, y, how: make(reduction=how, **options)(t["z"] if options.get("raw") is None else t["x"], y)


def from_head(kind: Any, make: Callable[..., Any]) -> Case:
    """A head with our class weights; and its bias, where it has one."""

    def case(t: dict[str, Tensor], y: Any, how: Any) -> Tensor:
        head = kind(D, C, make(reduction=how)).to(t["x"].dtype)
        own = {"weight": t["w"], "bias": t["b"]} if kind is heads.LinearHead else {"weight": t["w"]}
        return torch.func.functional_call(head, own, (t["x"], y))

    return case


def counted(kind: Any, **options: Any) -> Callable[..., Any]:
    return lambda **more: kind(COUNTS, **options, **more)


WEIGHT, SMOOTHINGS = COUNTS / 3, torch.linspace(0.05, 0.4, C)
PARTS: dict[str, Case] = {
    "logits": logits(),
    "logits, offset": logits(offset="o"),
    "logits, offset a row": logits(offset="rows"),
    "logits, offset a target class": logits(offset="table"),
    "logits, focal": logits(focal_gamma=1.5),
    "logits, smoothing": logits(label_smoothing=0.2, offset="o"),
    "logits, mixed": as_mixed(logits(offset="o")),
    "logits, mixed, smoothing": as_mixed(logits(label_smoothing=0.2, offset="table")),
    "linear": linear(linear_bias="b"),
    "linear, offset": linear(linear_bias="b", offset="o"),
    "linear, focal": linear(linear_bias="b", focal_gamma=0.5),
    "linear, smoothing": linear(linear_bias="b", label_smoothing=0.2),
    "linear, mixed": as_mixed(linear(linear_bias="b", offset="o")),
    "linear, slabs": within(linear(linear_bias="b", offset="o"), 128),
    "linear, groups": within(linear(linear_bias="b", label_smoothing=0.1), 256),
    "cosine": cosine(),
    "cosine, CosFace": cosine(margin=CosFace(0.2), offset="o"),
    "cosine, ArcFace": cosine(margin=ArcFace(0.2)),
    "cosine, SphereFace": cosine(margin=SphereFace(4), scale=1.0),
    "cosine, LDAM": cosine(margin=LDAM(COUNTS)),
    "cosine, DBM": cosine(margin=DBM(COUNTS), focal_gamma=0.5),
    "cosine, mixed": as_mixed(cosine(margin=CosFace(0.2))),
    "cosine, slabs": within(cosine(margin=SphereFace(3), scale=1.0), 128),
    "cosine, groups": within(cosine(margin=DBM(COUNTS)), 256),
    "balanced softmax": from_loss(losses.BalancedSoftmaxLoss, class_counts=COUNTS),
    "batch counts": from_loss(losses.ARBLoss, counts="batch"),
    "label-aware smoothing": from_loss(losses.LabelAwareSmoothingLoss, class_counts=COUNTS),
    "linear head": from_head(heads.LinearHead, losses.CrossEntropyLoss),
    "linear head, focal": from_head(heads.LinearHead, losses.FocalLoss),
    "linear head, smoothing": from_head(heads.LinearHead, counted(losses.LabelAwareSmoothingLoss)),
    "cosine head, balanced": from_head(heads.CosineHead, counted(losses.BalancedSoftmaxLoss)),
    "cosine head, SphereFace": from_head(heads.CosineHead, losses.SphereFaceLoss),
    "cosine head, DBM": from_head(heads.CosineHead, counted(losses.DBMLoss, base="bs")),
}
WEIGHTED = {
    "logits, weight": logits(weight=WEIGHT),
    "logits, weight, smoothing": logits(weight=WEIGHT, label_smoothing=SMOOTHINGS),
    "linear, weight": linear(weight=WEIGHT, linear_bias="b"),
    "linear, weight, groups": within(linear(weight=WEIGHT, linear_bias="b"), 256),
    "cosine, weight": cosine(margin=ArcFace(0.3), weight=WEIGHT),
    "class-balanced": from_head(heads.CosineHead, counted(losses.ClassBalancedLoss)),
}
ALL = PARTS | WEIGHTED


def gradients(value: Tensor, made: dict[str, Tensor], times: int = 1, incoming: Any = None) -> list[dict[str, Tensor]]:
    """The gradients of all leaves, zeros where there is none, that many times."""
    every = []
    for time in range(times):
        keep = time + 1 < times
        found = torch.autograd.grad(value, list(made.values()), incoming, allow_unused=True, retain_graph=keep)
        named = zip(made.items(), found, strict=True)
        every.append({name: torch.zeros_like(leaf) if one is None else one for (name, leaf), one in named})
    return every


@pytest.mark.parametrize("incoming", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_ignored_rows_gives_zeros(name: str, how: Any, incoming: float) -> None:
    """No gradient anywhere: neither in rows nor in class weights, bias and offset, first or later."""
    made = leaves(torch.float32)
    value = ALL[name](made, target(every=True), how) * incoming
    for found in gradients(value, made, 2):
        for leaf, gradient in found.items():
            assert bool((gradient == 0).all()), (leaf, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_a_mean_of_no_rows_gives_zeros(name: str, dtype: torch.dtype) -> None:
    """Its value is 0 / 0, as torch's; its gradients are 0, as torch's."""
    made = leaves(dtype)
    if dtype.itemsize == 2 and "weight" in name:
        pytest.skip("class weights are float32 here, and their dtype is no matter of ignored rows")
    value = ALL[name](made, target(every=True), "mean")
    assert value.isnan()
    for found in gradients(value, made, 2):
        assert all(bool((gradient == 0).all()) for gradient in found.values()), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_ignored_rows_among_others(name: str, dtype: torch.dtype) -> None:
    """Theirs are 0 even if infinity comes in, which shows in all the others."""
    made = leaves(dtype)
    used = "x" if "w" in _used(PARTS[name], made) else "z"
    for found in gradients(PARTS[name](made, target(every=False), "sum") * torch.inf, made, 2):
        ignored, others = found[used][ROWS], found[used][[row for row in range(N) if row not in ROWS]]
        assert bool((ignored == 0).all()), ignored
        assert not bool(others.isfinite().all(1).any()), others
        assert bool((found["rows"][ROWS] == 0).all())


def _used(case: Case, made: dict[str, Tensor]) -> set[str]:
    value = case(made, target(every=False), "sum")
    found = torch.autograd.grad(value, list(made.values()), allow_unused=True)
    return {name for name, one in zip(made, found, strict=True) if one is not None}


@pytest.mark.parametrize("name", ALL)
def test_infinity_for_ignored_rows_alone(name: str) -> None:
    """Row by row: what comes to ignored rows is not there, and all else is what it is without them."""
    made, there = leaves(torch.float64), target(every=False)
    incoming = torch.ones(N, dtype=torch.float64)
    expected = gradients(ALL[name](made, there, "none"), made, 1, incoming)[0]
    for strange in (torch.inf, torch.nan):
        value = ALL[name](made, there, "none")
        for found in gradients(value, made, 2, incoming.index_fill(0, torch.tensor(ROWS), strange)):
            for leaf, gradient in found.items():
                assert_close(gradient, expected[leaf], torch.float64, leaf)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("incoming", [torch.inf, torch.nan, 0.0, 1e38], ids=str)
@pytest.mark.parametrize("how", ["sum", "mean"])
def test_as_torch_row_by_row(how: Any, incoming: float, every: bool) -> None:
    """After F.linear, too: the same entries are finite."""
    made, there = leaves(torch.float32), target(every)
    ours = functional.linear_cross_entropy(made["x"], made["w"], there, linear_bias=made["b"], reduction=how)
    theirs = F.cross_entropy(F.linear(made["x"], made["w"], made["b"]), there, reduction=how)
    (mine,), (other,) = gradients(ours * incoming, made), gradients(theirs * incoming, made)
    for leaf in made:
        assert torch.equal(mine[leaf].isfinite(), other[leaf].isfinite()), leaf


def test_the_sum_of_no_rows_over_their_number() -> None:
    """(sum / 0).backward(), what everybody writes who divides by the number of valid items."""
    z = torch.zeros(2, 2, requires_grad=True)
    (functional.offset_cross_entropy(z, torch.tensor([-100, -100]), reduction="sum") / 0).backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_plain_mean_of_no_rows_through_sphere_face() -> None:
    """Under data parallelism one such rank would poison all."""
    x = torch.ones(1, 2, requires_grad=True)
    there = torch.tensor([-100])
    functional.cosine_margin_cross_entropy(x, torch.eye(2), there, margin=SphereFace(4)).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", ["logits, smoothing", "linear", "cosine, SphereFace", "logits, mixed"])
def test_compiled(name: str) -> None:
    """The same by torch.compile."""
    torch.compiler.reset()
    made = leaves(torch.float32)
    compiled = torch.compile(PARTS[name], backend="aot_eager")
    (found,) = gradients(compiled(made, target(every=True), "sum") * torch.inf, made)
    assert all(bool((gradient == 0).all()) for gradient in found.values()), found
