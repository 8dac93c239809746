"""Bad calls of the functions and margins: each raises an error that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lt_kernels.functional import (
    DBM,
    LDAM,
    ArcFace,
    CosFace,
    MixedTarget,
    SphereFace,
    cosine_margin_cross_entropy,
    lade_regularizer,
    linear_cross_entropy,
    logit_weight_repulsion,
    offset_cross_entropy,
)

AS_SHIPPED = True  # small inputs may take another way than the operators
NAN, INF = float("nan"), float("inf")
N, C, D = 5, 4, 3
LOGITS, TARGET = torch.randn(N, C), torch.tensor([0, 1, 2, 3, 0])
INPUT, WEIGHT = torch.randn(N, D), torch.randn(C, D)
COUNTS = [50, 20, 7, 2]
SOFT = torch.full((N, C), 1 / C)
MISSING = torch.tensor([0.0, 0.0, -INF, 0.0])

Case = tuple[str, Callable[[], Any]]


def offset_ce(logits: Any = LOGITS, target: Any = TARGET, *args: Any, **options: Any) -> Tensor:
    return offset_cross_entropy(logits, target, *args, **options)


def linear_ce(input: Any = INPUT, linear_weight: Any = WEIGHT, target: Any = TARGET, **options: Any) -> Tensor:
    return linear_cross_entropy(input, linear_weight, target, **options)


def cosine_ce(input: Any = INPUT, linear_weight: Any = WEIGHT, target: Any = TARGET, **options: Any) -> Tensor:
    return cosine_margin_cross_entropy(input, linear_weight, target, **options)


def lade(logits: Any = LOGITS, target: Any = TARGET, class_counts: Any = COUNTS, **options: Any) -> Tensor:
    return lade_regularizer(logits, target, class_counts, **options)


OFFSET_CASES: list[Case] = [
    ("logits", lambda: offset_ce(torch.tensor(1.0), torch.tensor(0))),
    ("logits", lambda: offset_ce(LOGITS.long())),
    ("logits", lambda: offset_ce(LOGITS.bool())),
    ("logits", lambda: offset_ce([[1.0, 2.0]], torch.tensor([0]))),
    ("logits", lambda: offset_ce(torch.randn(N, 0))),
    ("target", lambda: offset_ce(target=[0, 1, 2, 3, 0])),
    ("target", lambda: offset_ce(target=torch.tensor([0, 1, 2, 3, C]))),
    ("target", lambda: offset_ce(target=torch.tensor([0, 1, 2, 3, -1]))),
    ("target", lambda: offset_ce(target=torch.tensor([0, 1, 2, 3, -100]), ignore_index=-1)),
    ("target", lambda: offset_ce(target=TARGET[:-1])),
    ("target", lambda: offset_ce(target=TARGET[:, None])),
    ("target", lambda: offset_ce(target=TARGET.float())),
    ("target", lambda: offset_ce(target=TARGET.bool())),
    ("target", lambda: offset_ce(target=TARGET + 0j)),
    ("target", lambda: offset_ce(target=SOFT[:, :-1])),
    ("target", lambda: offset_ce(torch.randn(N, C, 2), TARGET)),
    ("target|focal_gamma", lambda: offset_ce(target=SOFT, focal_gamma=1.0)),
    ("weight", lambda: offset_ce(weight=torch.ones(C + 1))),
    ("weight", lambda: offset_ce(weight=torch.ones(1, C))),
    ("weight", lambda: offset_ce(weight=torch.ones(C, dtype=torch.long))),
    ("weight", lambda: offset_ce(weight=[1.0] * C)),
    ("offset", lambda: offset_ce(offset=torch.zeros(C + 1))),
    ("offset", lambda: offset_ce(offset=torch.zeros(N, C + 1))),
    ("offset", lambda: offset_ce(offset=torch.zeros(N + 1, C))),
    ("offset", lambda: offset_ce(offset=torch.zeros(C, dtype=torch.long))),
    ("offset", lambda: offset_ce(offset=0.5)),
    ("offset", lambda: offset_ce(LOGITS[:C], TARGET[:C], offset=torch.zeros(C, C))),
    ("offset", lambda: offset_ce(offset=MISSING)),
    ("offset", lambda: offset_ce(offset=MISSING.expand(N, 1, C))),
    ("offset", lambda: offset_ce(offset=MISSING.expand(1, C, C))),
    ("offset", lambda: offset_ce(target=SOFT, offset=torch.zeros(1, C, C))),
    ("offset", lambda: offset_ce(target=SOFT, offset=MISSING)),
    ("label_smoothing", lambda: offset_ce(label_smoothing=1.5)),
    ("label_smoothing", lambda: offset_ce(label_smoothing=-0.1)),
    ("label_smoothing", lambda: offset_ce(label_smoothing=NAN)),
    ("label_smoothing", lambda: offset_ce(label_smoothing="0.1")),
    ("label_smoothing", lambda: offset_ce(label_smoothing=torch.zeros(C + 1))),
    ("label_smoothing", lambda: offset_ce(target=SOFT, label_smoothing=torch.zeros(C))),
    ("focal_gamma", lambda: offset_ce(focal_gamma=-1.0)),
    ("focal_gamma", lambda: offset_ce(focal_gamma=NAN)),
    ("focal_gamma", lambda: offset_ce(focal_gamma=INF)),
    ("focal_gamma", lambda: offset_ce(focal_gamma="2")),
    ("ignore_index", lambda: offset_ce(ignore_index=1.5)),
    ("reduction", lambda: offset_ce(reduction="avg")),
    ("reduction", lambda: offset_ce(reduction=None)),
    ("lam", lambda: MixedTarget(TARGET, TARGET, 1.5)),
    ("lam", lambda: MixedTarget(TARGET, TARGET, NAN)),
    ("first", lambda: offset_ce(target=MixedTarget(SOFT, SOFT, 0.5))),
    ("second", lambda: offset_ce(target=MixedTarget(TARGET, TARGET[:-1], 0.5))),
    ("second|target", lambda: offset_ce(target=MixedTarget(TARGET, TARGET + 1, 0.5))),
]

FEATURE_CASES: list[Case] = [
    ("input", lambda: linear_ce(INPUT.long())),
    ("input", lambda: linear_ce(INPUT[:, :, None])),
    ("input|linear_weight", lambda: linear_ce(INPUT[:, :-1])),
    ("linear_weight", lambda: linear_ce(linear_weight=WEIGHT[0])),
    ("linear_weight", lambda: linear_ce(linear_weight=WEIGHT.double())),
    ("linear_weight", lambda: linear_ce(linear_weight=WEIGHT.tolist())),
    ("linear_bias", lambda: linear_ce(linear_bias=torch.zeros(C + 1))),
    ("linear_bias", lambda: linear_ce(linear_bias=torch.zeros(C, dtype=torch.long))),
    ("linear_bias", lambda: linear_ce(linear_bias=torch.zeros(C).double())),
    ("linear_bias", lambda: linear_ce(linear_bias=torch.zeros(C).half(), softcap=2.0)),
    ("target", lambda: linear_ce(target=TARGET + 1)),
    ("target", lambda: linear_ce(target=TARGET[:-1])),
    ("offset", lambda: linear_ce(offset=MISSING)),
    ("label_smoothing", lambda: linear_ce(label_smoothing=2.0)),
    ("reduction", lambda: linear_ce(reduction="max")),
    ("target|focal_gamma", lambda: linear_ce(target=SOFT, focal_gamma=1.0)),
    ("input", lambda: cosine_ce(INPUT.long())),
    ("input|linear_weight", lambda: cosine_ce(INPUT[:, :-1])),
    ("linear_weight", lambda: cosine_ce(linear_weight=WEIGHT[0])),
    ("scale", lambda: cosine_ce(scale=0.0)),
    ("scale", lambda: cosine_ce(scale=-3.0)),
    ("scale", lambda: cosine_ce(scale=NAN)),
    ("scale", lambda: cosine_ce(scale=INF)),
    ("margin", lambda: cosine_ce(margin=0.5)),
    ("class_counts|margin", lambda: cosine_ce(margin=LDAM([3, 2, 1]))),
    ("class_counts|margin", lambda: cosine_ce(margin=LDAM([3, 2, 1, 0]))),
    ("target|margin", lambda: cosine_ce(target=SOFT, margin=ArcFace(0.5))),
    ("target", lambda: cosine_ce(target=TARGET - 1)),
    ("reduction", lambda: cosine_ce(reduction="avg")),
    ("offset", lambda: cosine_ce(offset=MISSING)),
    ("margin", lambda: CosFace(NAN)),
    ("margin", lambda: ArcFace(INF)),
    ("margin", lambda: ArcFace("0.5")),
    ("margin", lambda: SphereFace(2.5)),
    ("margin", lambda: SphereFace(0)),
    ("annealing", lambda: SphereFace(4, -0.5)),
    ("annealing", lambda: SphereFace(4, float("inf"))),
    ("annealing", lambda: SphereFace(4, "much")),
    ("annealing", lambda: SphereFace(4, torch.ones(3))),
    ("annealing", lambda: SphereFace(4, torch.tensor(-1.0))),
    ("annealing", lambda: SphereFace(4, torch.tensor(1.0, requires_grad=True))),
    ("class_counts", lambda: LDAM([3, -1])),
    ("class_counts", lambda: LDAM([3, NAN])),
    ("class_counts", lambda: LDAM([[3, 1]])),
    ("class_counts", lambda: DBM([])),
    ("class_counts", lambda: DBM([0, 0])),
    ("max_margin", lambda: LDAM(COUNTS, max_margin=NAN)),
    ("max_margin", lambda: DBM(COUNTS, max_margin=INF)),
    ("tau", lambda: DBM(COUNTS, tau=NAN)),
    ("instance", lambda: DBM(COUNTS, instance=NAN)),
    ("threshold", lambda: logit_weight_repulsion(WEIGHT, threshold=NAN)),
    ("linear_weight", lambda: logit_weight_repulsion(WEIGHT[0])),
    ("linear_weight", lambda: logit_weight_repulsion(WEIGHT.long())),
    ("reduction", lambda: logit_weight_repulsion(WEIGHT, reduction="avg")),
    ("project", lambda: logit_weight_repulsion(WEIGHT, project="row")),
    ("logits", lambda: lade(torch.randn(N, C, 2))),
    ("logits", lambda: lade(LOGITS.long())),
    ("target", lambda: lade(target=TARGET + 1)),
    ("target", lambda: lade(target=SOFT)),
    ("class_counts", lambda: lade(class_counts=[1, 2, 3])),
    ("class_counts", lambda: lade(class_counts=[1, 2, 3, -4])),
    ("class_counts", lambda: lade(class_counts=[0, 0, 0, 0])),
    ("lam", lambda: lade(lam=NAN)),
    ("importance", lambda: lade(importance="row")),
    ("classes", lambda: lade(classes="some")),
]


@pytest.mark.parametrize("names, call", OFFSET_CASES)
def test_offset_cross_entropy(names: str, call: Callable[[], Any], kernels: str) -> None:
    """Each wing refuses it: the compiled kernels must not read outside their memory."""
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=rf"\b({names})\b"):
        call()


@pytest.mark.parametrize("names, call", FEATURE_CASES)
def test_functions_and_margins(names: str, call: Callable[[], Any], kernels: str) -> None:
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=rf"\b({names})\b"):
        call()


def test_the_good_calls_work() -> None:
    """The defaults above are sound: what fails there fails for the reason named."""
    for value in (offset_ce(), offset_ce(target=SOFT), linear_ce(), cosine_ce(margin=LDAM(COUNTS)), lade()):
        assert value.isfinite()
