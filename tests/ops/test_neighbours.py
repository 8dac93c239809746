"""Repulsion from a list of near pairs against all pairs: in every step, whatever the class weights do in between."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from class_weights import short
from helpers import generator, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.functional import logit_weight_repulsion
from lt_kernels.ops import neighbours
from lt_kernels.reference import gram as reference
from lt_kernels.regularizers import LogitWeightRepulsion

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is walked in parts is walked in several; by one thread, as two would mostly wait for each other."""
    torch.set_num_threads(1)
    for where, name, numbers in ((neighbours, "_SLAB", 900), (neighbours, "_WIDE", 2000), (reference, "_SLAB", 2000)):
        monkeypatch.setattr(where, name, numbers)


def listing(threshold: float = 0.4, skin: float = 0.1, **options: Any) -> LogitWeightRepulsion:
    return LogitWeightRepulsion(threshold, neighbours="list", skin=skin, **options)


def near(classes: int, features: int, seed: int = 1, spread: float = 1.1) -> Tensor:
    """Class weights of several lengths in groups of about six, whose cosines are on both sides of one half."""
    group = torch.arange(classes) % max(1, classes // 6)
    weight = normal(classes, features, seed=seed)[group] + spread * normal(classes, features, seed=seed + 1)
    return weight * (0.1 + torch.rand(classes, 1, generator=generator(seed + 2), dtype=torch.float64))


def turned(weight: Tensor, angle: float, random: torch.Generator) -> Tensor:
    """Each row turned by an angle in a direction at random."""
    aside = torch.randn(weight.shape, generator=random, dtype=weight.dtype)
    aside -= (aside * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True) * weight
    aside *= weight.norm(dim=1, keepdim=True) / aside.norm(dim=1, keepdim=True)
    return math.cos(angle) * weight + math.sin(angle) * aside


def gradient(term: Callable[[Tensor], Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """R and its gradient; where R is a vector, of a sum with weights that differ."""
    leaf = weight.detach().clone().requires_grad_()
    value = term(leaf)
    value.backward(torch.linspace(0.5, 2, value.numel()).to(value).view(value.shape))
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def assert_all_pairs(term: LogitWeightRepulsion, weight: Tensor) -> None:
    """Fail unless the term is what it is for all pairs."""
    options: Any = {"threshold": term.threshold, "project": term.project, "reduction": term.reduction}
    found, full = gradient(term, weight), gradient(lambda leaf: logit_weight_repulsion(leaf, **options), weight)
    for ours, exact in zip(found, full, strict=True):
        assert ours.dtype == exact.dtype
        assert_close(ours, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("project", "reduction"), [(True, "sum"), (False, "none"), (True, "mean"), ("raw", "none")])
def test_many_small_rotations(project: Any, reduction: Any, dtype: torch.dtype) -> None:
    term, weight, random = listing(project=project, reduction=reduction), near(150, 40), generator(5)
    weight = short(weight, project == "raw")
    listed = set()
    for _ in range(24):
        assert_all_pairs(term, weight.to(dtype))
        listed.add(term.pairs)
        weight = turned(weight, 0.025, random)
    assert 3 < term.rebuilds < 12
    assert len(listed) > 3  # pairs come and go
    assert term.status == f"a list of {term.pairs} pairs"


def pair(angle: float, features: int = 40) -> Tensor:
    """Two rows at an angle, and others at right angles with both."""
    rows = torch.eye(features, dtype=torch.float64)[:12]
    rows[1] = math.cos(angle) * rows[0] + math.sin(angle) * rows[1]
    return rows


@pytest.mark.parametrize("share", [0.5, 1.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_rows_that_close_in_as_fast_as_they_can(share: float, dtype: torch.dtype) -> None:
    """A pair just outside of the list becomes active at the end of the way; the list is made again just before."""
    term, threshold, skin = listing(0.4, 0.2), math.acos(0.4), 0.2
    outside = threshold + skin + 1e-4
    term(pair(outside).to(dtype))
    assert (term.rebuilds, term.pairs) == (1, 0)
    ways = [*torch.linspace(0, 0.199, 20).tolist(), *torch.linspace(0.1995, 0.203, 15).tolist()]
    for way in ways:
        rows = pair(outside - share * way)
        rows[:2] = turned_in_plane(rows[:2], (1 - share) * way)
        assert_all_pairs(term, rows.to(dtype))
        if way < 0.199:
            assert term.rebuilds == 1
    assert (term.rebuilds, term.pairs) == (2, 1)


def turned_in_plane(rows: Tensor, angle: float) -> Tensor:
    """The first row turned towards the second, which stays."""
    aside = rows[1] - (rows[0] @ rows[1]) * rows[0]
    return torch.stack((math.cos(angle) * rows[0] + math.sin(angle) * aside / aside.norm(), rows[1]))


def test_rows_that_jump() -> None:
    term, weight = listing(), near(60, 40)
    for row, other in ((3, 20), (59, 0), (7, 8)):
        assert_all_pairs(term, weight)
        before = term.rebuilds
        weight[row] = 2 * weight[other] + 0.1 * weight[row]
        assert_all_pairs(term, weight)
        assert term.rebuilds == before + 1


@pytest.mark.parametrize(("threshold", "skin"), [(0.5, 0.1), (0.95, 1.1)])
def test_rows_without_a_direction(threshold: float, skin: float) -> None:
    """A row that had none is anywhere once it has one, however wide the skin; one that loses it cannot be active."""
    term, weight = listing(threshold, skin), near(60, 200)
    kept = weight[9].clone()
    weight[4] = 0
    assert_all_pairs(term, weight)
    weight[9] = 0
    assert_all_pairs(term, weight)
    weight[9] = kept
    assert_all_pairs(term, weight)
    assert term.rebuilds == 1
    weight[4] = weight[5] + 0.001 * normal(200, seed=8)
    assert_all_pairs(term, weight)
    assert term.rebuilds == 2


def test_other_shapes_and_dtypes() -> None:
    term, weight = listing(), near(60, 40)
    changes = [weight, weight[:50], weight[:50, :30], weight[:1], weight.float(), weight.bfloat16(), weight[:, :39].T]
    for number, changed in enumerate(changes, 1):
        assert_all_pairs(term, changed)
        assert term.rebuilds == number
    assert_all_pairs(term, torch.stack((weight, weight), 2)[:, :, 1][:, :39].T)  # another layout
    assert term.rebuilds == len(changes)


def test_rows_that_are_not_finite() -> None:
    term, weight = listing(), near(60, 40)
    for bad in (math.nan, math.inf):
        for fresh in (listing(), term):
            assert_all_pairs(fresh, weight)
            broken = weight.clone()
            broken[5, 3] = bad
            assert fresh(broken).isnan()
            assert fresh.status == "all pairs: a row of the class weights is not finite"
            assert listing()(broken).isnan()
    assert_all_pairs(term, weight)
    assert (term.rebuilds, term.status[:6]) == (1, "a list")


@pytest.mark.parametrize(
    ("threshold", "skin", "why"),
    [
        (1.0, 0.1, "nothing is active"),
        (1.5, 0.1, "nothing is active"),
        (0.0, 0.1, "right angle"),
        (-0.5, 0.1, "right angle"),
        (0.05, 0.1, "right angle"),
        (0.4, math.pi, "right angle"),
        (0.11, 0.1, "too many"),
        (0.4, 0.1, "a list"),
        (0.9999, 0.001, "a list"),
    ],
)
def test_where_a_list_serves(threshold: float, skin: float, why: str) -> None:
    """All the rows of the dense case lie in one cone: every pair is near."""
    weight = near(400, 40)
    if why == "too many":
        weight = normal(400, 40, seed=3) + 3
    term = listing(threshold, skin)
    for _ in range(3):
        assert_all_pairs(term, weight)
    assert why in term.status
    assert repr(term.status) in repr(term)
    assert term.rebuilds == (why in ("a list", "too many"))  # and not again while nothing turns
    assert term.pairs > 0 or why != "a list" or threshold > 0.9


def test_a_resumed_run_has_the_same_bits() -> None:
    term, weight, random = listing(reduction="none"), near(150, 40).float(), generator(6)
    for _ in range(4):
        gradient(term, weight)
        weight = turned(weight, 0.01, random)
    assert term.state_dict() == {}
    resumed, copied = listing(reduction="none"), copy.deepcopy(term)
    resumed.load_state_dict(term.state_dict())
    results = [gradient(one, weight) for one in (term, resumed, copied)]
    assert (term.rebuilds, resumed.rebuilds) == (1, 1)
    assert term.pairs != resumed.pairs
    for value, slope in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(slope, results[0][1])


def test_a_cast_of_the_module_leaves_the_rows_alone() -> None:
    term, weight = listing(skin=0.02), near(60, 40).float()
    term(weight)
    term.bfloat16().float()
    term(turned(weight, 0.0096, generator(1)))
    assert term.rebuilds == 1
    term(turned(weight, 0.0104, generator(1)))
    assert term.rebuilds == 2


def test_a_list_of_inference_serves_in_training() -> None:
    for context in (torch.no_grad, torch.inference_mode):
        term, weight = listing(), near(60, 40).float()
        with context():
            assert not term(weight).requires_grad
        assert_all_pairs(term, weight)
        assert term.rebuilds == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, as it compiles
def test_torch_func_and_compile_take_all_pairs() -> None:
    term, weight = listing(), near(60, 40)
    value, slope = gradient(term, weight)
    assert_close(torch.func.grad(lambda leaf: 0.5 * term(leaf))(weight), slope)
    assert "torch.func" in term.status
    assert_close(torch.compile(term, backend="eager", fullgraph=True)(weight), value)


def test_autocast_keeps_the_wide_dtype() -> None:
    term, weight = listing(), near(60, 40).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, full = term(weight), logit_weight_repulsion(weight)
    assert value.dtype == full.dtype == torch.float32
    assert_close(value, full)


def test_second_derivative_is_an_error() -> None:
    weight = near(30, 8).requires_grad_()
    (slope,) = torch.autograd.grad(listing()(weight), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"neighbours": "x"}, ValueError, r"neighbours must be one of 'all', 'list', got 'x'"),
        ({"skin": -0.1}, ValueError, r"skin must be finite and >= 0\.0 .*got -0\.1"),
        ({"skin": 4.0}, ValueError, r"skin must be .*<= 3\.14.*got 4\.0"),
        ({"skin": math.nan}, ValueError, r"skin must be finite.*got nan"),
        ({"skin": "wide"}, TypeError, r"skin must be a number, got 'wide'"),
    ],
)
def test_bad_options_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogitWeightRepulsion(**options)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(0, 3), torch.ones(3, 3).int(), [[1.0]]])
def test_bad_class_weights_are_named(weight: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="linear_weight must be"):
        listing()(weight)
