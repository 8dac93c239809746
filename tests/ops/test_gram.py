"""Logit-weight repulsion against the dense formula in float64, at the edges of tiles and where lists are full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from class_weights import adversarial, apart, apart_or_not, cosines, exact, exact_bytes, ours, short, similar
from helpers import assert_same, gradients, normal
from tolerances import TOLERANCE, assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lt_kernels.functional import logit_weight_repulsion
from lt_kernels.ops import gram, tiles
from lt_kernels.reference import gram as reference
from lt_kernels.reference import screen

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("project", [True, False, "raw"])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.2, 0.4, 0.6, 1.0])
def test_formula(threshold: float, project: Any, dtype: torch.dtype) -> None:
    weight = short(similar(70, 40, threshold, dtype), project == "raw")
    assert_same(ours(threshold, project), exact(threshold, project), {"weight": weight}, dtype)


@pytest.mark.parametrize(
    ("classes", "threshold"), [*((size, 0.4) for size in (1, 2, 3, 1023, 1024, 1025, 2100)), (1025, 0.0)]
)
def test_edges_of_tiles(classes: int, threshold: float) -> None:
    weight = similar(classes, 48, threshold, torch.float32, gap=2e-6)
    assert_same(ours(threshold), exact(threshold), {"weight": weight}, torch.float32)


@pytest.mark.parametrize("project", [True, False, "raw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_list(dtype: torch.dtype, project: Any, kernels: str) -> None:
    """Clusters with more pairs than the list has room for: some tiles are listed, one is made again, one has none."""
    group = torch.arange(2100) % 1050 % 20
    group[2048:] = torch.arange(20, 72)  # alone, so that a tile without pairs comes last
    weight = (4 * normal(72, 48, seed=1)[group] + normal(2100, 48, seed=2)).to(dtype)
    weight = short(apart(weight, 0.8, gap=2e-6), project == "raw")
    if kernels == "compiled":
        *_, count, listless = gram.forward_op(weight, 0.8, project == "raw")
        assert 0 < int(count) <= reference.PAIRS * 2100
        assert 0 < int(listless.sum()) < 6
    assert_same(ours(0.8, project), exact(0.8, project), {"weight": weight}, dtype)


@pytest.mark.parametrize("raw", [False, True])
def test_mixed_wings(raw: bool, kernels: str) -> None:
    """What one wing's forward pass saved serves the other's backward pass: a list, or every tile made again."""
    if kernels == "reference":
        pytest.skip("needs both wings")
    weight, grad = short(similar(1100, 40, 0.4, torch.float32, gap=2e-6), raw), normal(1100, seed=5).float()
    found = []
    for total, scale, *saved in (tiles.forward(weight, 0.4, raw), reference.gram_forward(weight, 0.4, raw)):
        found.append(gram.backward_op(weight, 0.4, not raw, scale, total, *saved, grad, raw))
    assert_close(*found)


@pytest.mark.parametrize("features", [33, 256, 1000])
def test_bound_holds(features: int) -> None:
    """No rounded product falls below the limit of a threshold that the pair's own cosine reaches."""
    weight = adversarial(features)
    scale, unit, step, error = tiles.units_op(weight)
    rounded = unit.double() * step[:, None].double()
    cosine = (weight @ weight.T * scale[:, None] * scale).double()
    bound = screen.screening_bound(error[:, None].double(), error.double(), features)
    assert (rounded @ rounded.T >= cosine - bound).all()
    assert (rounded @ rounded.T - cosine).abs().max() > 1e-3  # the rounding is there
    true = torch.linalg.vector_norm(rounded - torch.nn.functional.normalize(weight.double(), dim=1), dim=1)
    assert ((error - true).abs() < 1e-6)[scale > 0].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0.01, 0.4, 0.9, 0.9999])
def test_screened_is_unscreened(threshold: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same active pairs, the same Z, with int8 products and without them."""
    exact_bytes()
    weight = apart_or_not(adversarial(64), threshold).to(dtype)
    weight = weight[weight.float().norm(dim=1).isfinite()]
    found = []
    for screened in (True, False):
        monkeypatch.setattr(tiles, "screening", lambda *_, on=screened: (on, "test"))
        total, _, first, second, value, count, _ = tiles.forward(weight, threshold)
        order = (first[: int(count)].long() * len(weight) + second[: int(count)]).argsort()
        found.append((total, first[: int(count)][order], second[: int(count)][order], value[: int(count)][order]))
    for left, right in zip(*found, strict=True):
        assert left.shape == right.shape
        assert_close(left.float(), right.float())


def test_what_is_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(2, 8)
    assert_reason(weight.double(), 0.4, "float64")
    assert_reason(weight, 0.0, "half of the pairs")
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: True)
    monkeypatch.setattr(tiles, "_byte_products", lambda: False)
    assert_reason(weight, 0.4, "no int8")
    monkeypatch.setattr(tiles, "_byte_products", lambda: True)
    assert tiles.screening(weight, 0.4)[0] == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert_reason(weight, 0.4, "oneDNN")


def assert_reason(weight: Tensor, threshold: float, word: str) -> None:
    used, reason = tiles.screening(weight, threshold)
    assert not used
    assert word in reason


def test_screening_gives_up() -> None:
    """Where nearly all pairs survive, the products are made in float32 from then on."""
    weight = (normal(1, 40, seed=1) + 0.3 * normal(1500, 40, seed=2)).float()
    driver = tiles.Forward(weight, 0.3)
    total = driver.run()[0]
    assert driver.hits <= 0
    assert_close(total, reference.gram_forward(weight, 0.3)[0])


@pytest.mark.parametrize("threshold", [-1.0, 0.4])
@pytest.mark.parametrize("project", [True, False])
def test_zero_rows(threshold: float, project: bool) -> None:
    """A row without a direction has cosine 0 with all others, itself still 1, and no gradient."""
    weight = similar(50, 40, threshold, torch.float32)
    some = torch.arange(50) % 7 != 3
    result = gradients(ours(threshold, project), {"weight": torch.where(some[:, None], weight, 0.0)}, torch.ones(50))
    alike = cosines(weight[some])
    active = (alike > threshold).fill_diagonal_(False)
    rest = torch.where(active, alike.expm1(), 0.0).sum(1) + 49 + torch.e
    assert_close(result["value"][some], rest.log() - 1, torch.float32)
    assert_close(result["value"][~some], (torch.tensor(49 + torch.e)).log().expand(7) - 1, torch.float32)
    assert (result["weight"][~some] == 0).all()
    assert result["weight"].isfinite().all()


@pytest.mark.parametrize("length", [1e-10, 1e-4, 1e6, 1e15])
def test_lengths(length: float) -> None:
    weight = similar(60, 40, 0.4, torch.float32)
    left = gradients(ours(0.4), {"weight": weight * length}, torch.ones(60))
    right = gradients(exact(0.4), {"weight": weight.double()}, torch.ones(60))
    assert_close(left["value"], right["value"], torch.float32)
    assert_close(left["weight"].double() * length, right["weight"], torch.float32)


def test_tangent() -> None:
    weight = similar(1100, 40, 0.4, torch.float32, gap=2e-6)
    gradient = gradients(ours(0.4), {"weight": weight}, torch.ones(1100))["weight"]
    along = (gradient * weight).sum(1) / weight.norm(dim=1)
    assert along.abs().max() <= 1e-6 * gradient.norm(dim=1).max()


def test_not_finite() -> None:
    """A class weight with NaN or infinity shows; it does not spoil the values of the others."""
    weight = similar(1030, 40, 0.4, torch.float32, gap=2e-6)
    weight[5, 3], weight[1029, 0] = torch.nan, torch.inf
    value = logit_weight_repulsion(weight, threshold=0.4, reduction="none")
    assert value.isnan().nonzero().flatten().tolist() == [5, 1029]


def test_layouts() -> None:
    wide = similar(120, 90, 0.4, torch.float32)
    for weight in (wide[::2], wide[:, 5:60], wide.T):
        assert_same(ours(0.37), exact(0.37), {"weight": apart(weight, 0.37)}, torch.float32)


class Sizes(TorchDispatchMode):
    """The most elements of any tensor that an operator returned."""

    largest = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))  # type: ignore[operator]
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_never_all_cosines(threshold: float, raw: bool, kernels: str) -> None:
    """No tensor of C x C elements, nor of a quarter of that, whichever kernels serve."""
    weight, grad = normal(4200, 32, seed=1, dtype=torch.float32), torch.ones(4200)
    wing = tiles if kernels == "compiled" else reference
    forward, backward = (getattr(wing, name, None) or getattr(wing, f"gram_{name}") for name in ("forward", "backward"))
    with Sizes() as sizes:
        total, scale, *saved = forward(weight, threshold, raw)
        backward(weight, threshold, not raw, scale, total, *saved, grad, raw)
    assert sizes.largest <= 4200**2 / 4
