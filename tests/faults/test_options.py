"""Numbers as options: those of numpy and torch are taken where Python's are, and what is out of range is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import classes_of, normal
from torch import Tensor

from lt_kernels import contrastive, functional, heads, losses, metrics, priors, regularizers, schedules
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

N, D, C = 6, 5, 4
COUNTS = [50, 20, 7, 2]
LOGITS, TARGET = normal(N, C, seed=1, dtype=torch.float32), classes_of(N, C, seed=2)
FEATURES, WEIGHT = normal(N, D, seed=3, dtype=torch.float32), normal(C, D, seed=4, dtype=torch.float32)
BASE = losses.LogitAdjustmentLoss(COUNTS)


def of(loss: Callable[..., Tensor]) -> Tensor:
    return loss(LOGITS.tanh(), TARGET)


def cosine(**options: Any) -> Tensor:
    return functional.cosine_margin_cross_entropy(FEATURES, WEIGHT, TARGET, **options)


def offset(**options: Any) -> Tensor:
    return functional.offset_cross_entropy(LOGITS, TARGET, **options)


def head(make: Callable[[], torch.nn.Module]) -> Tensor:
    torch.manual_seed(5)
    made = make()
    return made(FEATURES.repeat(1, getattr(made, "experts", 1)), TARGET).detach()


# (the value, what takes it)
NUMBERS: list[tuple[float, Callable[[Any], Any]]] = [
    (0.5, lambda x: offset(focal_gamma=x)),
    (0.25, lambda x: offset(label_smoothing=x)),
    (0.25, lambda x: functional.linear_cross_entropy(FEATURES, WEIGHT, TARGET, label_smoothing=x, focal_gamma=x)),
    (7.0, lambda x: cosine(scale=x)),
    (0.25, lambda x: cosine(margin=CosFace(x))),
    (0.25, lambda x: cosine(margin=ArcFace(x))),
    (0.25, lambda x: cosine(margin=LDAM(COUNTS, x))),
    (0.25, lambda x: cosine(margin=DBM(COUNTS, x, x, x))),
    (0.25, lambda x: functional.logit_weight_repulsion(WEIGHT, threshold=x)),
    (0.25, lambda x: functional.lade_regularizer(LOGITS, TARGET, torch.tensor(COUNTS), lam=x)),
    (0.25, lambda x: functional.offset_cross_entropy(LOGITS, MixedTarget(TARGET, TARGET.flip(0), x))),
    (0.5, lambda x: contrastive.balanced_contrastive(FEATURES, WEIGHT, TARGET, temperature=x)),
    (0.25, lambda x: of(losses.CrossEntropyLoss(label_smoothing=x))),
    (1.5, lambda x: of(losses.LogitAdjustmentLoss(COUNTS, x))),
    (1.5, lambda x: of(losses.FocalLoss(x))),
    (0.5, lambda x: of(losses.ClassBalancedLoss(COUNTS, x, x))),
    (0.5, lambda x: of(losses.LDAMLoss(COUNTS, x, x))),
    (0.5, lambda x: of(losses.DBMLoss(COUNTS, x, x, x, x, base="cb", beta=x))),
    (0.5, lambda x: of(losses.CosFaceLoss(x, x))),
    (0.5, lambda x: of(losses.ArcFaceLoss(x, x))),
    (0.5, lambda x: of(losses.SphereFaceLoss(4, x))),
    (1.5, lambda x: of(losses.SphereFaceLoss(4, annealing=x))),
    (0.5, lambda x: of(losses.LADELoss(COUNTS, x, x))),
    (0.5, lambda x: of(losses.LabelAwareSmoothingLoss(COUNTS, x, x, power=x))),
    (0.5, lambda x: head(lambda: heads.LinearHead(D, C, losses.EstimatedOffsetLoss(C, D, x, x, center_rate=x)))),
    (0.5, lambda x: head(lambda: heads.CosineHead(D, C, BASE, scale=x))),
    (0.5, lambda x: head(lambda: bcl(x))),
    (0.5, lambda x: head(lambda: gml(x))),
    (0.5, lambda x: head(lambda: heads.NCLHead(D, C, ncl(x), scale=x))),
    (0.5, lambda x: regularizers.LogitWeightRepulsion(x, neighbours="list", skin=x)(WEIGHT)),
    (0.5, lambda x: of(regularizers.LADERegularizer(COUNTS, x))),
    (0.5, lambda x: schedules.PolynomialDecay(10, x)(5)),
    (0.5, lambda x: schedules.DeferredReweighting(COUNTS, 1, x)(1)),
    (0.5, lambda x: priors.label_aware_smoothing(COUNTS, x, x, "exp", x)),
    (0.25, lambda x: metrics.geometric_mean([0.0, 1.0], x)),
]
WHOLES: list[tuple[int, Callable[[Any], Any]]] = [
    (3, lambda x: cosine(margin=SphereFace(x))),
    (3, lambda x: cosine(margin=SphereFace(x, x))),
    (1, lambda x: offset(ignore_index=x)),
    (1, lambda x: of(losses.CrossEntropyLoss(ignore_index=x))),
    (1, lambda x: cosine(ignore_index=x)),
    (3, lambda x: of(losses.SphereFaceLoss(x))),
    (3, lambda x: losses.NCLLoss(COUNTS, hard_categories=x)(LOGITS[None], TARGET)),
    (C, lambda x: head(lambda: heads.LinearHead(D, x, BASE))),
    (C, lambda x: head(lambda: heads.CosineHead(D, x, BASE))),
    (D, lambda x: head(lambda: heads.LinearHead(x, C, BASE))),
    (D, lambda x: head(lambda: bcl(0.5, hidden=x, out_features=x))),
    (D, lambda x: head(lambda: heads.GMLHead(x, C, losses.GMLLoss(BASE, COUNTS), out_features=x, queue=20))),
    (8, lambda x: head(lambda: gml(0.5, queue=x, per_class=2))),
    (2, lambda x: head(lambda: gml(0.5, queue=8, per_class=x))),
    (2, lambda x: head(lambda: heads.NCLHead(D, C, ncl(0.5), experts=x))),
    (C, lambda x: head(lambda: heads.LinearHead(D, C, losses.EstimatedOffsetLoss(x, D)))),
    (3, lambda x: schedules.DeferredReweighting(COUNTS, x)(x)),
    (3, lambda x: schedules.PolynomialDecay(x)(1)),
    (3, lambda x: schedules.LinearWarmup(x)(1)),
    (C, lambda x: priors.class_counts_of(TARGET, x)),
    (C, lambda x: metrics.per_class_accuracy(TARGET, TARGET, x).nan_to_num()),
]
FLAGS: list[tuple[bool, Callable[[Any], Any]]] = [
    (flag, take)
    for flag in (False, True)
    for take in (
        lambda x: functional.logit_weight_repulsion(WEIGHT, project=x),
        lambda x: regularizers.LogitWeightRepulsion(project=x)(WEIGHT),
        lambda x: cosine(margin=DBM(COUNTS, guard=x)),
        lambda x: of(losses.DBMLoss(COUNTS, guard=x)),
        lambda x: of(losses.ClassBalancedLoss(COUNTS, normalize=x)),
        lambda x: len(list(heads.LinearHead(D, C, BASE, bias=x).parameters())),
    )
]


def bcl(x: Any, **options: Any) -> torch.nn.Module:
    loss = losses.BalancedContrastiveLoss(BASE, classification_weight=x, contrastive_weight=x, temperature=x)
    return heads.BalancedContrastiveHead(D, C, loss, scale=x, **options)


def gml(x: Any, **options: Any) -> torch.nn.Module:
    weights = {"classification_weight": x, "contrastive_weight": x, "distillation_weight": x}
    loss = losses.GMLLoss(BASE, COUNTS, temperature=x, distillation_temperature=x, **weights)
    return heads.GMLHead(D, C, loss, scale=x, **{"queue": 20, **options})


def ncl(x: Any) -> torch.nn.Module:
    return losses.NCLLoss(COUNTS, hard_categories=2, distillation=x, scale=x)


FORMS: dict[str, Callable[[Any], Any]] = {
    "float64 of numpy": np.float64,
    "float32 of numpy": np.float32,
    "float16 of numpy": np.float16,
    "array without dimensions": np.array,
    "tensor": torch.tensor,
    "float64 of torch": lambda x: torch.tensor(x, dtype=torch.float64),
}
WHOLE_FORMS: dict[str, Callable[[Any], Any]] = {
    "int64 of numpy": np.int64,
    "uint8 of numpy": np.uint8,
    "array without dimensions": np.array,
    "tensor": torch.tensor,
    "int32 of torch": lambda x: torch.tensor(x, dtype=torch.int32),
}
FLAG_FORMS: dict[str, Callable[[Any], Any]] = {"bool of numpy": np.bool_, "array": np.array, "tensor": torch.tensor}


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", range(len(NUMBERS)))
def test_numbers(place: int, form: str) -> None:
    value, take = NUMBERS[place]
    same(take(FORMS[form](value)), take(value))


@pytest.mark.parametrize("form", WHOLE_FORMS)
@pytest.mark.parametrize("place", range(len(WHOLES)))
def test_integers(place: int, form: str) -> None:
    value, take = WHOLES[place]
    same(take(WHOLE_FORMS[form](value)), take(value))


@pytest.mark.parametrize("form", FLAG_FORMS)
@pytest.mark.parametrize("place", range(len(FLAGS)))
def test_flags(place: int, form: str) -> None:
    value, take = FLAGS[place]
    same(take(FLAG_FORMS[form](value)), take(value))


BAD: list[tuple[str, Callable[[], Any]]] = [
    (
        "scale must be a plain number, got a tensor that requires",
        lambda: cosine(scale=torch.tensor(3.0).requires_grad_()),
    ),
    ("scale must be a number", lambda: cosine(scale=np.array([3.0]))),
    ("scale must be a number", lambda: cosine(scale=torch.tensor([3.0]))),
    ("scale must be a number", lambda: cosine(scale=np.bool_(True))),
    ("scale must be a plain number or a tensor on the CPU", lambda: cosine(scale=torch.tensor(3.0, device="meta"))),
    ("focal_gamma must be finite", lambda: offset(focal_gamma=np.float32("nan"))),
    ("ignore_index must be an integer", lambda: offset(ignore_index=np.float64(1.0))),
    ("ignore_index must be an integer", lambda: losses.CrossEntropyLoss(ignore_index=torch.tensor(True))),
    ("focal_gamma must be finite", lambda: offset(focal_gamma=10**400)),
    ("scale must be finite", lambda: cosine(scale=10**400)),
    ("margin must be finite, got 1", lambda: CosFace(10**400)),
    ("margin must be finite, got inf", lambda: CosFace(float("inf"))),
    ("gamma must be finite and >= 0.0, got -1.0", lambda: losses.FocalLoss(-1.0)),
    ("scale must be finite and > 0.0, got 0.0", lambda: losses.CosFaceLoss(scale=0.0)),
    ("rate must be finite and >= 0.0 and <= 1.0, got 2", lambda: regularizers.CenterLoss(2, 3, rate=2)),
    ("high must be at least low, 5.0, got 1.0", lambda: schedules.SphereFaceAnnealing(high=1.0)),
    ("ignore_index must be at most", lambda: losses.CrossEntropyLoss(ignore_index=2**70)),
    ("ignore_index must be at least", lambda: losses.CrossEntropyLoss(ignore_index=-(2**70))),
    (
        "project must be True, False or 'raw', got 1",
        lambda: functional.logit_weight_repulsion(WEIGHT, project=np.int64(1)),
    ),
    ("margin must be at most 64, got 2147483648", lambda: SphereFace(2**31)),
    ("margin must be at most 64, got 65", lambda: losses.SphereFaceLoss(65)),
    ("margin must be at least 1", lambda: SphereFace(0)),
]


@pytest.mark.parametrize("message, make", BAD, ids=[message for message, _ in BAD])
def test_what_is_no_number_is_named(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan"), float("inf")])
def test_shares_are_in_range(bad: float) -> None:
    lam, smoothing = torch.tensor([0.5] * (N - 1) + [bad]), torch.tensor([0.5] * (C - 1) + [bad])
    for given in (lam, torch.tensor(bad), lam.half()):
        with pytest.raises(ValueError, match=r"lam must be in \[0, 1\], got"):
            MixedTarget(TARGET, TARGET, given)
    for call in (
        lambda: offset(label_smoothing=smoothing),
        lambda: cosine(label_smoothing=smoothing),
        lambda: functional.linear_cross_entropy(FEATURES, WEIGHT, TARGET, label_smoothing=smoothing.double()),
        lambda: losses.Loss(label_smoothing=smoothing),
    ):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got"):
            call()


def test_shares_at_their_ends() -> None:
    ends = torch.tensor([0.0, 1.0] * (N // 2))
    found = functional.offset_cross_entropy(LOGITS, MixedTarget(TARGET, TARGET.flip(0), ends), reduction="none")
    mixed = torch.where(ends == 1, TARGET, TARGET.flip(0))
    torch.testing.assert_close(found, functional.offset_cross_entropy(LOGITS, mixed, reduction="none"))


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # torch's own
def test_learned_shares_and_compiled_ones() -> None:
    """A lam that is learned gets its gradient; a graph that is compiled looks at no value."""
    lam = torch.tensor(0.3, requires_grad=True)
    functional.offset_cross_entropy(LOGITS, MixedTarget(TARGET, TARGET.flip(0), lam)).backward()
    first, second = offset(), functional.offset_cross_entropy(LOGITS, TARGET.flip(0))
    torch.testing.assert_close(lam.grad, first - second)

    def mixed(logits: Tensor, share: Tensor) -> Tensor:
        return functional.offset_cross_entropy(logits, MixedTarget(TARGET, TARGET.flip(0), share))

    share = torch.full((N,), 0.3)
    compiled = torch.compile(mixed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(LOGITS, share), mixed(LOGITS, share))
