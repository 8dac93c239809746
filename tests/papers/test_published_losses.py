"""Every named loss against its paper's formula: value and all gradients, with settings that are not the defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from helpers import assert_same, classes_of, counts_of, normal
from published import own_of, replace
from tolerances import assert_close
from torch import Tensor

from benchmarks.registry import NAMED, OF_FEATURES, defaults, example, made, of_cosines, takes
from lt_kernels import losses

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

ROWS, CLASSES = 17, 9
COUNTS = counts_of(CLASSES, 101)
WEIGHT = normal(CLASSES, seed=102).abs() + 0.2

Formula = Callable[[Tensor, Tensor], Tensor]
SHOWN = {"input": normal(ROWS, CLASSES, seed=104, spread=2.0)}
COSINES = {"input": normal(ROWS, CLASSES, seed=106).tanh()}


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each loss with its defaults, with a setting changed, and with all of them changed."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in sorted(set(NAMED) - set(OF_FEATURES)):
        found[name] = name, {}
        for key, values in NAMED[name].settings.items():
            found |= {f"{name} {key}={value}": (name, {key: value}) for value in values[1:]}
        found[f"{name} changed"] = name, example(name)
    return found


VARIANTS = variants()
CLASS_BALANCED = published.class_balanced_weight(COUNTS, 0.99)
# With weights, a beta, and margins that pass pi.
OTHERS: dict[str, tuple[Callable[[], torch.nn.Module], Formula]] = {
    "ce": (lambda: losses.CrossEntropyLoss(weight=WEIGHT), lambda z, y: published.cross_entropy(z, y, WEIGHT)),
    "focal": (lambda: losses.FocalLoss(0.5, weight=WEIGHT), lambda z, y: published.focal(z, y, 0.5, WEIGHT)),
    "ldam": (
        lambda: losses.LDAMLoss(COUNTS, max_margin=0.3, scale=10.0, weight=WEIGHT),
        lambda c, y: of_cosines(c, y, own_of(c, y) - published.ldam_margin(COUNTS, 0.3)[y], 10.0, weight=WEIGHT),
    ),
    "dbm guard": (
        lambda: losses.DBMLoss(COUNTS, max_margin=0.9, tau=0.1, scale=12.0, guard=True),
        lambda c, y: of_cosines(c, y, published.dbm(c, y, published.dbm_margin(COUNTS, 0.9, 0.1), guard=True), 12.0),
    ),
    "dbm": (
        lambda: losses.DBMLoss(COUNTS, scale=12.0, base="cb", beta=0.99),
        lambda c, y: of_cosines(c, y, published.dbm(c, y, published.dbm_margin(COUNTS)), 12.0, weight=CLASS_BALANCED),
    ),
}


def agree(loss: torch.nn.Module, formula: Formula) -> None:
    """Values and gradients, at logits or at cosines."""
    target, leaves = classes_of(ROWS, CLASSES, 103), COSINES if loss.input_kind == "cosine" else SHOWN
    assert_same(lambda input: loss.double()(input, target), lambda input: formula(input, target), leaves)


@pytest.mark.parametrize("variant", VARIANTS)
def test_formula(variant: str) -> None:
    name, settings = VARIANTS[variant]
    given = defaults(name) | settings
    agree(made(name, COUNTS, **settings), lambda input, y: NAMED[name].published(input, y, COUNTS, **given))


@pytest.mark.parametrize("name", OTHERS)
def test_formula_with_more(name: str) -> None:
    make, formula = OTHERS[name]
    agree(make(), formula)


def test_the_registry_has_every_loss() -> None:
    """Each loss of `lt_kernels.losses` but the base and those with a second part."""
    names = {name for name in losses.__all__ if issubclass(getattr(losses, name), losses.Loss)}
    assert set(NAMED) == names - {"Loss"}
    given = {name: {**defaults(name), **example(name)} for name in NAMED}
    assert {name: key for name in NAMED for key in given[name] if not takes(name, key)} == {}


@pytest.mark.parametrize("base", ["ce", "bs"])
def test_dbm_with_class_weights(base: str) -> None:
    """wmean of the cross-entropy, as deferred weights make it (DBM-DRW); an offset is free where the base has none."""
    target, leaves = classes_of(ROWS, CLASSES, 110), {"input": normal(ROWS, CLASSES, seed=111).tanh()}
    offset = normal(CLASSES, seed=112) if base == "ce" else None
    given = {} if offset is None else {"offset": offset}
    loss = losses.DBMLoss(COUNTS, 0.4, scale=9.0, base=base, weight=WEIGHT, **given)

    def exact(input: Tensor) -> Tensor:
        own = published.dbm(input, target, published.dbm_margin(COUNTS, 0.4))
        tables = {"offset": (COUNTS / COUNTS.sum()).log() if offset is None else offset, "weight": WEIGHT}
        return published.cross_entropy(9.0 * replace(input, target, own), target, **tables)

    assert_same(lambda input: loss(input, target), exact, leaves)


def test_sphereface_norms() -> None:
    """All logits of the row are multiplied by |x|, and the gradient flows through it."""
    loss, target = losses.SphereFaceLoss(4, scale=1.5, annealing=0.8), classes_of(ROWS, CLASSES, 107)

    def exact(input: Tensor, norms: Tensor) -> Tensor:
        logits = 1.5 * norms[:, None] * replace(input, target, published.sphereface(own_of(input, target), 4, 0.8))
        return published.cross_entropy(logits, target)

    leaves = {"input": normal(ROWS, CLASSES, seed=108).tanh(), "norms": normal(ROWS, seed=109).abs()}
    assert_same(lambda input, norms: loss(input, target, norms=norms), exact, leaves)


@pytest.mark.parametrize("gap", [-1e-3, -1e-9, 1e-9, 1e-3])
def test_hard_starts_where_another_cosine_is_larger(gap: float) -> None:
    """The instance margin sets in between a rival just below and one just above the target's cosine."""
    cosine = torch.full((1, CLASSES), -0.9, dtype=torch.float64)
    cosine[0, 2], cosine[0, 7] = 0.3, 0.3 + gap
    loss, target = losses.DBMLoss(torch.ones(CLASSES), max_margin=0.4, scale=10.0).double(), torch.tensor([2])
    angle = torch.tensor(0.3, dtype=torch.float64).acos() + 0.4 * (1 + (gap > 0) * 0.35)
    exact = published.cross_entropy(10.0 * replace(cosine, target, angle.cos()[None]), target)
    assert_close(loss(cosine, target), exact)
