"""logit_weight_repulsion where it is cut in tiles: few similar pairs, very many, and pairs at the threshold."""

from __future__ import annotations

import math
from typing import Any

import published
import pytest
import torch
from helpers import assert_same, gradients, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels.functional import logit_weight_repulsion

pytestmark = pytest.mark.usefixtures("kernels")


def weights(kind: str, classes: int) -> Tensor:
    """Class weights with few similar pairs, with all pairs similar in one corner, or with all similar everywhere."""
    spread = normal(classes, 48, seed=701)
    if kind == "few":
        return spread
    together = 3 * normal(1, 48, seed=702) + spread
    if kind == "all":
        return together
    scattered = torch.randperm(classes, generator=torch.Generator().manual_seed(703))
    crowd = torch.zeros(classes, 1, dtype=torch.bool)
    crowd[: classes // 3] = True
    return torch.where(crowd if kind == "corner" else crowd[scattered], together, spread)


def no_worse_than_eager(weight: Tensor, threshold: float) -> None:
    """Each row and the gradient, against float64 and against the dense formula in the dtype of the weight."""
    call, dense = logit_weight_repulsion, published.logit_weight_repulsion
    found = gradients(lambda w: call(w, threshold=threshold, reduction="none"), {"w": weight})
    eager = gradients(lambda w: dense(w, threshold, reduction="none"), {"w": weight})
    exact = gradients(lambda w: dense(w, threshold, reduction="none"), {"w": weight.double()})
    for key, truth in exact.items():
        allowed = error(eager[key], truth) + TOLERANCE[weight.dtype]
        assert error(found[key], truth) <= allowed, f"{key}: {error(found[key], truth):.1e} above {allowed:.1e}"


@pytest.mark.parametrize("classes, project", [(1024, True), (1030, False), (2100, True), (1030, "raw")])
@pytest.mark.parametrize("kind", ["few", "corner", "scattered", "all"])
def test_tiles(kind: str, classes: int, project: Any) -> None:
    leaves = {"w": weights(kind, classes)}
    assert_same(
        lambda w: logit_weight_repulsion(w, threshold=0.4, project=project, reduction="none"),
        lambda w: published.logit_weight_repulsion(w, 0.4, project, "none"),
        leaves,
    )


@pytest.mark.parametrize("kind", ["few", "corner", "scattered", "all"])
def test_tiles_in_float32(kind: str) -> None:
    """The same in single precision, where tiles may be passed over by a bound: none with a similar pair may be."""
    weight = weights(kind, 1100)
    alike = (torch.nn.functional.normalize(weight) @ torch.nn.functional.normalize(weight).T).flatten().sort().values
    ends = torch.tensor([0.39, 0.41], dtype=torch.float64)
    near = torch.cat([ends[:1], alike[(alike - 0.4).abs() < 0.01], ends[1:]])
    gap = near.diff().argmax()  # a threshold that no pair comes near: none changes sides by rounding
    no_worse_than_eager(weight.float(), (near[gap] + near[gap + 1]).item() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.4])
def test_pairs_beside_the_threshold(threshold: float, dtype: torch.dtype) -> None:
    """One pair a hair above and one a hair below, in two tiles, among classes that are like nothing else."""
    hair, classes = (1e-5 if dtype == torch.float32 else 1e-9), 1060
    weight = torch.eye(classes, dtype=torch.float64)
    if threshold < 0:  # below zero there is no room for many that are like nothing: two heaps that face each other
        weight = torch.zeros(classes, 2, dtype=torch.float64)
        weight[:, 0] = 1 - 2 * (torch.arange(classes) % 2)
    for place, cosine in ((300, threshold + hair), (1050, threshold - hair)):
        weight[place] = 0.0
        weight[place, 0] = cosine
        weight[place, 1 if threshold < 0 else place] = math.sqrt(1 - cosine**2)
    no_worse_than_eager(weight.to(dtype), threshold)
    if threshold > 0:
        found = gradients(lambda w: logit_weight_repulsion(w, threshold=threshold), {"w": weight.to(dtype)})["w"]
        assert found[300].abs().max() > 0
        assert found[1050].abs().max() == 0


def test_lengths_of_every_size() -> None:
    """Class weights from 1e-6 to 1e6 long: only directions count."""
    weight = weights("few", 1100)
    length = torch.logspace(-6, 6, 1100, dtype=torch.float64)[:, None]
    call = logit_weight_repulsion
    assert_close(call(weight * length, threshold=0.1), call(weight, threshold=0.1))
    found = gradients(lambda w: call(w, threshold=0.1), {"w": weight * length})["w"] * length
    assert_close(found, gradients(lambda w: call(w, threshold=0.1), {"w": weight})["w"])
