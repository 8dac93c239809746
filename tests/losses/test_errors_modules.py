"""Bad calls of losses, heads, regularisers, priors, schedules and metrics: each error names the argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.registry import NAMED, OF_FEATURES, made, takes
from lt_kernels import functional, heads, losses, metrics, posthoc, priors, regularizers, schedules

NAN, INF = float("nan"), float("inf")
N, C, D = 5, 4, 3
LOGITS, TARGET = torch.randn(N, C), torch.tensor([0, 1, 2, 3, 0])
FEATURES, WEIGHT = torch.randn(N, D), torch.randn(C, D)
COUNTS = [50, 20, 7, 2]

Case = tuple[str, Callable[[], Any]]


def reweighted(weight: Any) -> torch.Tensor:
    """What a schedule does, and the first call after it."""
    loss = losses.LDAMLoss(COUNTS)
    loss.set_weight(weight)
    return loss(LOGITS, TARGET)


LOSS_CASES: list[Case] = [
    ("weight", lambda: losses.CrossEntropyLoss(weight=torch.ones(C + 1))(LOGITS, TARGET)),
    ("weight", lambda: losses.CrossEntropyLoss(weight=torch.ones(1, C))(LOGITS, TARGET)),
    ("reduction", lambda: losses.CrossEntropyLoss(reduction="avg")(LOGITS, TARGET)),
    ("label_smoothing", lambda: losses.CrossEntropyLoss(label_smoothing=-1.0)(LOGITS, TARGET)),
    ("margin", lambda: losses.Loss(margin=0.5)),
    ("margin", lambda: losses.BalancedSoftmaxLoss(COUNTS, margin=functional.CosFace)),
    ("class_counts", lambda: losses.BalancedSoftmaxLoss([])),
    ("class_counts", lambda: losses.BalancedSoftmaxLoss([3, -2])),
    ("class_counts", lambda: losses.BalancedSoftmaxLoss([3, INF])),
    ("class_counts", lambda: losses.BalancedSoftmaxLoss([0, 0])),
    ("class_counts", lambda: losses.BalancedSoftmaxLoss([[3, 2]])),
    ("class_counts", lambda: losses.BalancedSoftmaxLoss("many")),
    ("class_counts|offset", lambda: losses.BalancedSoftmaxLoss([3, 2])(LOGITS, TARGET)),
    ("target", lambda: losses.BalancedSoftmaxLoss(COUNTS)(LOGITS, TARGET + 1)),
    ("tau", lambda: losses.LogitAdjustmentLoss(COUNTS, tau=NAN)),
    ("class_counts", lambda: losses.ARBLoss()),
    ("counts", lambda: losses.ARBLoss(COUNTS, counts="some")),
    ("gamma", lambda: losses.FocalLoss(-1.0)(LOGITS, TARGET)),
    ("gamma", lambda: losses.FocalLoss(NAN)(LOGITS, TARGET)),
    ("beta", lambda: losses.ClassBalancedLoss(COUNTS, beta=1.0)),
    ("beta", lambda: losses.ClassBalancedLoss(COUNTS, beta=-0.1)),
    ("beta", lambda: losses.ClassBalancedLoss(COUNTS, beta=NAN)),
    ("gamma", lambda: losses.ClassBalancedLoss(COUNTS, gamma=-2.0)(LOGITS, TARGET)),
    ("average", lambda: losses.ClassBalancedLoss(COUNTS, average="some")),
    ("scale", lambda: losses.LDAMLoss(COUNTS, scale=0.0)(LOGITS, TARGET)),
    ("max_margin", lambda: losses.LDAMLoss(COUNTS, max_margin=NAN)),
    ("base", lambda: losses.DBMLoss(COUNTS, base="some")),
    ("applies", lambda: losses.DBMLoss(COUNTS, applies="some")),
    ("beta", lambda: losses.DBMLoss(COUNTS, base="cb", beta=1.0)),
    ("tau", lambda: losses.DBMLoss(COUNTS, tau=NAN)),
    ("margin", lambda: losses.ArcFaceLoss(NAN)),
    ("scale", lambda: losses.ArcFaceLoss(scale=-1.0)(LOGITS, TARGET)),
    ("margin", lambda: losses.SphereFaceLoss(1.5)),
    ("annealing", lambda: losses.SphereFaceLoss(annealing=-1.0)),
    ("annealing", lambda: losses.SphereFaceLoss().set_annealing(INF)),
    ("annealing", lambda: losses.SphereFaceLoss().set_annealing(-1.0)),
    ("norms", lambda: losses.SphereFaceLoss()(LOGITS, TARGET, norms=torch.ones(N + 1))),
    ("norms", lambda: losses.SphereFaceLoss()(LOGITS, TARGET, norms=torch.ones(N, device="meta"))),
    ("input", lambda: losses.SphereFaceLoss()(LOGITS.tolist(), TARGET, norms=torch.ones(N))),
    ("input", lambda: losses.SphereFaceLoss()(LOGITS[..., None], TARGET[:, None], norms=torch.ones(N))),
    ("target|margin", lambda: losses.LDAMLoss(COUNTS)(LOGITS, torch.full((N, C), 0.25))),
    ("alpha", lambda: losses.LADELoss(COUNTS, alpha=NAN)),
    ("lam", lambda: losses.LADELoss(COUNTS, lam=NAN)),
    ("importance", lambda: losses.LADELoss(COUNTS, importance="some")),
    ("centers", lambda: losses.EstimatedOffsetLoss(C, D, centers="some")),
    ("use", lambda: losses.EstimatedOffsetLoss(C, D, use="both")),
    ("center_weight", lambda: losses.EstimatedOffsetLoss(C, D, 0.0, centers="autograd", use="predict")),
    ("num_classes", lambda: losses.EstimatedOffsetLoss(0, D)),
    ("in_features", lambda: losses.EstimatedOffsetLoss(C, -1)),
    ("center_rate", lambda: losses.EstimatedOffsetLoss(C, D, center_rate=NAN)),
    ("features", lambda: losses.EstimatedOffsetLoss(C, D)(LOGITS, TARGET)),
    ("features", lambda: losses.EstimatedOffsetLoss(C, D)(LOGITS, TARGET, features=LOGITS, linear_weight=WEIGHT)),
    ("linear_weight", lambda: losses.EstimatedOffsetLoss(C, D)(LOGITS, TARGET, features=FEATURES)),
    ("head", lambda: losses.LabelAwareSmoothingLoss(COUNTS, head=1.5)),
    ("tail", lambda: losses.LabelAwareSmoothingLoss(COUNTS, tail=-0.5)),
    ("shape", lambda: losses.LabelAwareSmoothingLoss(COUNTS, shape="some")),
    ("spread", lambda: losses.LabelAwareSmoothingLoss(COUNTS, spread="some")),
    ("weight", lambda: reweighted(torch.ones(C + 1))),
    ("weight", lambda: reweighted([1.0] * C)),
    ("weight", lambda: losses.DBMLoss(COUNTS, base="cb", weight=torch.ones(C))),
    ("weight", lambda: losses.DBMLoss(COUNTS, weight=torch.ones(C + 1))(LOGITS, TARGET)),
]

OTHER_CASES: list[Case] = [
    ("loss", lambda: heads.LinearHead(D, C, losses.LDAMLoss(COUNTS))),
    ("loss", lambda: heads.LinearHead(D, C, "ce")),
    ("in_features", lambda: heads.LinearHead(0, C, losses.CrossEntropyLoss())),
    ("num_classes", lambda: heads.CosineHead(D, -1, losses.CrossEntropyLoss())),
    ("scale", lambda: heads.CosineHead(D, C, losses.CrossEntropyLoss(), scale=0.0)),
    ("scale", lambda: heads.CosineHead(D, C, losses.CrossEntropyLoss(), scale=NAN)),
    ("features|input", lambda: heads.LinearHead(D, C, losses.CrossEntropyLoss())(FEATURES[:, :-1], TARGET)),
    ("target", lambda: heads.CosineHead(D, C, losses.LDAMLoss(COUNTS))(FEATURES, TARGET + 1)),
    ("class_counts|margin", lambda: heads.CosineHead(D, C + 1, losses.LDAMLoss(COUNTS))(FEATURES, TARGET)),
    ("teacher", lambda: HEADS["GMLHead"]()(FEATURES, TARGET, teacher=LOGITS.to("meta"))),
    ("num_classes", lambda: heads.BalancedContrastiveHead(D, 1, losses.BalancedContrastiveLoss(PRIOR))),
    ("threshold", lambda: regularizers.LogitWeightRepulsion(threshold=NAN)),
    ("reduction", lambda: regularizers.LogitWeightRepulsion(reduction="avg")),
    ("linear_weight", lambda: regularizers.LogitWeightRepulsion()(WEIGHT[0])),
    ("class_counts", lambda: regularizers.LADERegularizer([-1, 2])),
    ("classes", lambda: regularizers.LADERegularizer(COUNTS, classes="some")),
    ("offset", lambda: regularizers.UniformOffset()(WEIGHT)),
    ("centers", lambda: regularizers.CenterLoss(C, D, centers="some")),
    ("rate", lambda: regularizers.CenterLoss(C, D, rate=NAN)),
    ("features", lambda: regularizers.CenterLoss(C, D)(FEATURES[:, :-1], TARGET)),
    ("features", lambda: regularizers.CenterLoss(C, D)(FEATURES.to("meta"), TARGET.to("meta"))),
    ("target", lambda: regularizers.CenterLoss(C, D)(FEATURES, TARGET + 1)),
    ("class_counts", lambda: priors.log_prior([1.0, NAN])),
    ("class_counts", lambda: priors.log_prior(torch.ones(2, 2))),
    ("tau", lambda: priors.log_prior(COUNTS, INF)),
    ("beta", lambda: priors.class_balanced_weight(COUNTS, 1.5)),
    ("max_margin", lambda: priors.ldam_margin(COUNTS, NAN)),
    ("tau", lambda: priors.dbm_margin(COUNTS, tau=NAN)),
    ("head", lambda: priors.label_aware_smoothing(COUNTS, 2.0, 0.0)),
    ("shape", lambda: priors.label_aware_smoothing(COUNTS, 0.3, 0.0, shape="some")),
    ("power", lambda: priors.label_aware_smoothing(COUNTS, 0.3, 0.0, shape="exp", power=-1.0)),
    ("target", lambda: priors.class_counts_of(TARGET + 1, C)),
    ("target", lambda: priors.class_counts_of(TARGET.float(), C)),
    ("num_classes", lambda: priors.class_counts_of(TARGET, 0)),
    ("class_counts", lambda: schedules.DeferredReweighting([-1, 2])),
    ("start_epoch", lambda: schedules.DeferredReweighting(COUNTS, start_epoch=-1)),
    ("normalize", lambda: schedules.DeferredReweighting(COUNTS, normalize="no")),
    ("beta", lambda: schedules.DeferredReweighting(COUNTS, beta=1.0)),
    ("total", lambda: schedules.PolynomialDecay(0)),
    ("power", lambda: schedules.PolynomialDecay(10, power=NAN)),
    ("epochs", lambda: schedules.LinearWarmup(-1)),
    ("high", lambda: schedules.SphereFaceAnnealing(high=1.0, low=5.0)),
    ("low", lambda: schedules.SphereFaceAnnealing(low=-1.0)),
    ("rate", lambda: schedules.SphereFaceAnnealing(rate=NAN)),
    ("power", lambda: schedules.SphereFaceAnnealing(power=-1.0)),
    ("step", lambda: schedules.SphereFaceAnnealing()(-1)),
    ("prediction|target", lambda: metrics.per_class_accuracy(TARGET[:-1], TARGET, C)),
    ("class_counts", lambda: metrics.group_accuracy(torch.ones(C), torch.ones(C + 1))),
]


OWN = {
    "BalancedSoftmaxLoss": ("offset", "tau"),
    "LogitAdjustmentLoss": ("offset",),
    "ARBLoss": ("offset",),
    "FocalLoss": ("focal_gamma", "average"),
    "ClassBalancedLoss": ("weight", "focal_gamma"),
    "LDAMLoss": ("margin",),
    "DBMLoss": ("margin",),
    "LADELoss": ("offset",),
    "EstimatedOffsetLoss": ("offset",),
    "LabelAwareSmoothingLoss": ("label_smoothing",),
}


def complaint(name: str, option: str) -> str:
    """What a named loss says of an option that is None; "" if it takes it."""
    arguments = (C, D) if name in OF_FEATURES else (COUNTS,) if takes(name, "class_counts") else ()
    try:
        getattr(losses, name)(*arguments, **{option: None})
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMED)
def test_an_option_that_a_loss_sets_itself_is_said(name: str) -> None:
    """Every option of `Loss` is taken, or the error says why not and what to use."""
    said = {option: complaint(name, option) for option in (*inspect.signature(losses.Loss).parameters, "tau")}
    own = {option for option, text in said.items() if f"{option} must be left to {name}, which sets it (" in text}
    assert own == set(OWN.get(name, ()))
    assert not [text for text in said.values() if "multiple values" in text]


@pytest.mark.parametrize("names, call", LOSS_CASES)
def test_losses(names: str, call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=rf"\b({names})\b"):
        call()


def bad_settings() -> list[tuple[str, str, Any]]:
    """Every number of a named loss as no number, and every word as another one."""
    found = [(name, key, values[0]) for name in NAMED for key, values in NAMED[name].settings.items()]
    return [(name, key, "some" if isinstance(it, str) else NAN) for name, key, it in found if not isinstance(it, bool)]


def called(name: str, settings: dict[str, Any]) -> torch.Tensor:
    """A loss that is made and called."""
    if name in OF_FEATURES:
        loss = losses.EstimatedOffsetLoss(C, D, **settings)
        return heads.LinearHead(D, C, loss, bias=False)(FEATURES, TARGET)
    return made(name, COUNTS, **settings)(LOGITS, TARGET)


@pytest.mark.parametrize("name, key, bad", bad_settings())
def test_every_setting_of_every_loss(name: str, key: str, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"\b{key}\b"):
        called(name, {key: bad})


@pytest.mark.parametrize("names, call", OTHER_CASES)
def test_heads_regularizers_priors_schedules_metrics(names: str, call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=rf"\b({names})\b"):
        call()


PRIOR = losses.LogitAdjustmentLoss(COUNTS)
HEADS: dict[str, Callable[[], torch.nn.Module]] = {
    "LinearHead": lambda: heads.LinearHead(D, C, losses.CrossEntropyLoss()),
    "CosineHead": lambda: heads.CosineHead(D, C, losses.ArcFaceLoss()),
    "sub-centres": lambda: heads.CosineHead(D, C, losses.ArcFaceLoss(), centers=2),
    "BalancedContrastiveHead": lambda: heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(PRIOR)),
    "GMLHead": lambda: heads.GMLHead(D, C, losses.GMLLoss(PRIOR, COUNTS)),
    "NCLHead": lambda: heads.NCLHead(D, C, losses.NCLLoss(COUNTS, hard_categories=2), experts=1),
    "LearnableWeightScaling": lambda: posthoc.LearnableWeightScaling(HEADS["LinearHead"]()),
}
BAD_FEATURES: dict[str, Any] = {
    "list": FEATURES.tolist(),
    "array": FEATURES.numpy(),
    "integers": FEATURES.long(),
    "float64": FEATURES.double(),
    "bfloat16": FEATURES.bfloat16(),
    "width": FEATURES[:, :-1],
    "scalar": FEATURES[0, 0],
    "device": FEATURES.to("meta"),
}


@pytest.mark.parametrize("target", [None, TARGET], ids=["predict", "train"])
@pytest.mark.parametrize("features", BAD_FEATURES.values(), ids=BAD_FEATURES)
@pytest.mark.parametrize("head", HEADS)
def test_features_that_a_head_cannot_take_are_named(head: str, features: Any, target: torch.Tensor | None) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^features must be "):
        HEADS[head]()(features, target)


@pytest.mark.parametrize("head", HEADS)
def test_autocast_takes_features_of_another_dtype(head: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert HEADS[head]()(FEATURES.bfloat16()).shape == (N, C)


def test_a_table_without_values_says_what_to_give() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"weight must have values.*: make it with device='cpu'"):
        losses.CrossEntropyLoss(torch.ones(C))
    with torch.device("meta"), pytest.raises(ValueError, match=r"class_counts must have values.*: give a list"):
        losses.BalancedSoftmaxLoss(torch.ones(C))
