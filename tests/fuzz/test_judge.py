"""The judge agrees with the formulas as published, which share nothing with it, and calls what is wrong wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from helpers import assert_same, classes_of, counts_of, normal
from torch import Tensor

from benchmarks.registry import NAMED, OF_FEATURES, defaults, example
from fuzz import judge, judge_tables, verdict
from fuzz.case import Case
from fuzz.draw import Draw, case_of
from fuzz.judge import Spec
from fuzz.run import shrunk

N, C, D = 6, 5, 4
COUNTS, TARGET = counts_of(C, 3), classes_of(N, C, 1)
ANGULAR = {"phi": "angular", "margin": published.dbm_margin(COUNTS, 0.3), "instance": 1.0}


def table(*shape: int, seed: int) -> Tensor:
    return normal(*shape, seed=seed)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("form, shape", [("class", (C,)), ("row", (N, C)), ("target", (C, C))])
def test_cross_entropy(form: str, shape: tuple[int, ...], gamma: float, reduction: str) -> None:
    """With weights, an offset of each form, ignored rows, classes that are not there, and smoothing."""
    target = torch.tensor([1, -100, 2, 4, 2, 1])
    offset, weight, eps = table(*shape, seed=5), table(C, seed=6).abs(), table(C, seed=7).sigmoid()
    offset[..., 0] = -torch.inf
    spec = Spec(weight=weight, gamma=gamma, smoothing=eps, reduction=reduction)
    full = offset[None] if form == "target" else offset
    assert_same(
        lambda z: judge.cross_entropy(z, target, offset, form, spec),
        lambda z: published.cross_entropy(z, target, weight, full, gamma, eps, -100, reduction),
        {"z": table(N, C, seed=8)},
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probabilities(smoothing: float) -> None:
    soft, weight = table(N, C, seed=9).softmax(1), table(C, seed=10).abs()
    assert_same(
        lambda z: judge.cross_entropy(z, soft, None, "none", Spec(weight=weight, smoothing=smoothing)),
        lambda z: published.soft_cross_entropy(z, soft, weight, None, smoothing),
        {"z": table(N, C, seed=11)},
    )


PHI: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "cosface": ({"phi": "additive", "margin": 0.35}, lambda own, y: published.cosface(own, 0.35)),
    "arcface": ({"phi": "angular", "margin": 2.0, "guard": True}, lambda own, y: published.arcface(own, 2.0)),
    "sphereface": ({"phi": "sphere", "margin": 4}, lambda own, y: published.sphereface(own, 4)),
    "annealed": ({"phi": "sphere", "margin": 4, "annealing": 3.0}, lambda own, y: published.sphereface(own, 4, 3.0)),
}


@pytest.mark.parametrize("name", PHI)
def test_margins(name: str) -> None:
    options, phi = PHI[name]

    def exact(cosine: Tensor) -> Tensor:
        own = phi(published.own_of(cosine, TARGET), TARGET)
        return published.cross_entropy(16.0 * published.replace(cosine, TARGET, own), TARGET)

    leaves = {"cosine": 0.9 * table(N, C, seed=12).tanh()}
    spec = Spec(scale=16.0, **options)
    assert_same(lambda cosine: judge.cross_entropy(cosine, TARGET, None, "none", spec), exact, leaves)


@pytest.mark.parametrize("guard", [False, True])
def test_dbm(guard: bool) -> None:
    def exact(cosine: Tensor) -> Tensor:
        own = published.dbm(cosine, TARGET, published.dbm_margin(COUNTS, 0.3), guard=guard)
        return published.cross_entropy(published.replace(cosine, TARGET, own), TARGET)

    leaves = {"cosine": 0.9 * table(N, C, seed=13).tanh()}
    spec = Spec(guard=guard, **ANGULAR)
    assert_same(lambda cosine: judge.cross_entropy(cosine, TARGET, None, "none", spec), exact, leaves)


def test_cosines() -> None:
    leaves = {"x": table(N, D, seed=14), "w": table(C, D, seed=15)}
    assert_same(lambda x, w: judge.cosines(x, w)[0], lambda x, w: published.cosines(x, w), leaves)


@pytest.mark.parametrize("project", [True, False, "raw"])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 1.0])
def test_repulsion(threshold: float, project: bool | str) -> None:
    assert_same(
        lambda w: judge.repulsion(w, threshold, project, "mean"),
        lambda w: published.logit_weight_repulsion(w, threshold, project, "mean"),
        {"w": table(9, 3, seed=16)},
    )


@pytest.mark.parametrize("importance", ["class", "sample"])
@pytest.mark.parametrize("classes", ["all", "present"])
def test_lade(classes: str, importance: str) -> None:
    assert_same(
        lambda z: judge.lade(z, TARGET, COUNTS, 0.3, importance, classes),
        lambda z: published.lade_regularizer(z, TARGET, COUNTS, 0.3, importance, classes),
        {"z": table(N, C, seed=17)},
    )


def test_margins_of_counts() -> None:
    """The rarest class has the largest."""
    ldam = judge_tables.with_margin(Spec(), ("LDAM", 0.5), COUNTS).margin
    assert torch.allclose(ldam, published.ldam_margin(COUNTS))
    dbm = judge_tables.with_margin(Spec(), ("DBM", 0.3, 0.5, 1.0, False), COUNTS).margin
    assert torch.allclose(dbm, published.dbm_margin(COUNTS, 0.3, 0.5))


@pytest.mark.parametrize("name", sorted(set(NAMED) - {*OF_FEATURES, "LADELoss"}))
@pytest.mark.parametrize("given", [defaults, example])
def test_terms_of_every_loss(given: Callable[[str], dict[str, Any]], name: str) -> None:
    """What the registry says that a loss sets makes its published formula."""
    case = Case(function="loss", loss=name, settings=tuple(given(name).items()))
    spec, offset = judge_tables.named(case, Spec(), COUNTS, TARGET)
    assert_same(
        lambda z: judge.cross_entropy(z, TARGET, offset, "class", spec),
        lambda z: NAMED[name].published(z, TARGET, COUNTS, **given(name)),
        {"z": 0.9 * table(N, C, seed=18).tanh()},
    )


WRONG = {
    "value": lambda value, logits: value + 1e-4,
    "gradient": lambda value, logits: value + 1e-4 * (logits - logits.detach()).sum(),
    "nan": lambda value, logits: value * torch.nan,
    "ignored": lambda value, logits: value + 1e-30 * (logits - logits.detach()).sum(),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_is_found(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is off, by little, is not let through."""
    case, right = Case(rows=5, classes=7, ignored="some", seed=3), verdict.ours
    verdict.judged(case)

    def wrong(problem: Any) -> Any:
        call = right(problem)
        return lambda input: WRONG[how](call(input), input)

    monkeypatch.setattr(verdict, "ours", wrong)
    with pytest.raises(verdict.Wrong):
        verdict.judged(case)


def test_a_failure_is_made_smaller() -> None:
    """To the one choice that matters."""
    draw = Draw(given=(4, 8, 1, 7, 9, *[1] * 30))
    assert case_of(draw, "offset").classes > 2
    small = shrunk(draw.choices, lambda d: case_of(d, "offset"), lambda case: case.classes > 4)
    assert small == Case(classes=5)
    assert eval(repr(small), {"Case": Case}) == small
