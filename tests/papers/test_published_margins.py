"""cosine_margin_cross_entropy against the papers' formulas: every margin, every option, values and all gradients."""

from __future__ import annotations

import math
from typing import Any

import published
import pytest
import torch
from helpers import assert_same, classes_of, counts_of, normal
from published import own_of
from torch import Tensor

from lt_kernels import functional

AS_SHIPPED = True
pytestmark = pytest.mark.usefixtures("kernels")

SPHERES = {
    "sphereface": (4, 0.0),
    "sphereface2": (2, 0.0),
    "sphereface annealed": (4, 0.6),
    "sphereface late": (3, 9.0),
}
MARGINS = ["none", "cosface", "arcface", *SPHERES, "ldam", "dbm", "dbm tuned", "dbm guarded", "dbm of all"]


def margin_for(name: str, counts: Tensor) -> Any:
    """Our margin of each name, with values that are not the defaults."""
    return {
        "none": None,
        "cosface": functional.CosFace(0.35),
        "arcface": functional.ArcFace(0.5),
        "sphereface": functional.SphereFace(4),
        "sphereface2": functional.SphereFace(2),
        "sphereface annealed": functional.SphereFace(4, 0.6),
        "sphereface late": functional.SphereFace(3, torch.tensor(9.0)),
        "ldam": functional.LDAM(counts, max_margin=0.4),
        "dbm": functional.DBM(counts),
        "dbm tuned": functional.DBM(counts, max_margin=0.3, tau=0.6, instance=1.5),
        "dbm guarded": functional.DBM(counts, max_margin=0.9, tau=0.2, instance=2.0, guard=True),
        "dbm of all": functional.DBM(counts, max_margin=0.7, tau=0.3, instance=1.2, applies="all"),
    }[name]


def adjusted(name: str, features: Tensor, cosine: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The cosines with the paper's margin applied to the target's (times |x| for SphereFace)."""
    own = own_of(cosine, target)
    if name in SPHERES:
        psi = published.sphereface(own, *SPHERES[name])
        return features.norm(dim=1, keepdim=True) * published.replace(cosine, target, psi)
    if name.startswith("dbm"):
        settings = {
            "dbm": (0.1, 1.0, 1.0, False),
            "dbm tuned": (0.3, 0.6, 1.5, False),
            "dbm guarded": (0.9, 0.2, 2.0, True),
            "dbm of all": (0.7, 0.3, 1.2, False, "all"),
        }
        largest, tau, *rest = settings[name]
        phi = published.dbm(cosine, target, published.dbm_margin(counts, largest, tau), *rest)
        return published.replace(cosine, target, phi)
    phi = {
        "none": lambda: own,
        "cosface": lambda: published.cosface(own, 0.35),
        "arcface": lambda: published.arcface(own, 0.5),
        "ldam": lambda: published.cosface(own, published.ldam_margin(counts, 0.4)[target]),
    }[name]()
    return published.replace(cosine, target, phi)


def both(name: str, target: Tensor, counts: Tensor, leaves: dict[str, Tensor], scale: float, **options: Any) -> None:
    """Compare ours with the paper's for one margin."""
    words = {"focal_gamma": "gamma", "label_smoothing": "smoothing"}
    theirs = {words.get(key, key): value for key, value in options.items()}

    def exact(input: Tensor, linear_weight: Tensor, offset: Tensor | None = None) -> Tensor:
        chosen = torch.where(target == options.get("ignore_index", -100), 0, target)
        cosine = published.cosines(input, linear_weight)
        logits = scale * adjusted(name, input, cosine, chosen, counts)
        return published.cross_entropy(logits, target, offset=offset, **theirs)

    def ours(input: Tensor, linear_weight: Tensor, offset: Tensor | None = None) -> Tensor:
        margin = margin_for(name, counts)
        return functional.cosine_margin_cross_entropy(
            input, linear_weight, target, margin=margin, scale=scale, offset=offset, **options
        )

    assert_same(ours, exact, leaves)


def leaves_for(rows: int, classes: int, features: int, offset: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    leaves = {
        "input": normal(rows, features, seed=81, spread=2.0),
        "linear_weight": normal(classes, features, seed=82, spread=0.5),
    }
    return leaves if offset is None else leaves | {"offset": normal(*offset, seed=83, spread=2.0)}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("offset", [None, (9,), (13, 1, 9), (1, 9, 9)], ids=str)
@pytest.mark.parametrize("name", MARGINS)
def test_margins(name: str, offset: tuple[int, ...] | None, reduction: str) -> None:
    counts = counts_of(9, 84)
    scale = 1.5 if name in SPHERES else 16.0
    both(name, classes_of(13, 9, 85), counts, leaves_for(13, 9, 4, offset), scale, reduction=reduction)


@pytest.mark.parametrize(
    "options",
    [
        {"focal_gamma": 2.0},
        {"label_smoothing": 0.2},
        {"focal_gamma": 0.5, "label_smoothing": 0.1, "ignore_index": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MARGINS)
def test_options(name: str, options: dict[str, Any]) -> None:
    target = classes_of(13, 9, 86)
    target[5] = options.get("ignore_index", -100)
    weight = normal(9, seed=87).abs()
    scale = 0.7 if name in SPHERES else 10.0
    both(name, target, counts_of(9, 88), leaves_for(13, 9, 4, (9,)), scale, weight=weight, **options)


@pytest.mark.parametrize("rows, classes", [(5, 1), (5, 2), (40, 16), (5, 33), (4, 257), (3, 1025), (2, 4097)])
@pytest.mark.parametrize("name", ["arcface", "sphereface", "ldam", "dbm tuned"])
def test_shapes(name: str, rows: int, classes: int) -> None:
    both(name, classes_of(rows, classes, 89), counts_of(classes, 90), leaves_for(rows, classes, 5), 8.0)


@pytest.mark.parametrize("angle", [0.02, 0.6, 1.2, 2.0, 2.5, 2.63, 2.66, 3.0, 3.12])
@pytest.mark.parametrize("name", MARGINS)
def test_angles(name: str, angle: float) -> None:
    """One row at a given angle from its class: every branch of every margin, also past pi."""
    weight = torch.tensor([[1.0, 0.0], [-0.2, 0.7], [0.4, -0.9]], dtype=torch.float64)
    features = 1.7 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    counts = torch.tensor([3.0, 40.0, 900.0], dtype=torch.float64)
    both(name, torch.tensor([0]), counts, {"input": features, "linear_weight": weight}, 2.0)
