"""The methods by name: which head, loss, deferred weights and regularizer each stands for, and their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from lt_kernels import losses
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.regularizers import LogitWeightRepulsion
from lt_kernels.schedules import DeferredReweighting, PolynomialDecay
from lt_kernels.train.config import ConfigError, unknown_name

# The share of the epochs before the weights come in (160 of 200 epochs in Cao et al., 2019), and the weights' beta.
DEFERRED_DEFAULTS: Mapping[str, Any] = {"drw_start": 0.8, "drw_beta": 0.9999}
# lambda(t) = strength (1 - t / T)^power, t in epochs.
REPULSION_DEFAULTS: Mapping[str, Any] = {
    "lwr_threshold": 0.4,
    "lwr_project": True,
    "lwr_strength": 1.0,
    "lwr_power": 2.0,
    "lwr_neighbours": "all",
    "lwr_skin": 0.1,
}
REPULSION_SUFFIX = "-lwr"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method needs to know of the run: `class_counts` [C], the features' width and the number of epochs."""

    class_counts: torch.Tensor
    in_features: int
    epochs: int

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.class_counts.numel())


LossFactory = Callable[[Setting, dict[str, Any]], nn.Module]


@dataclasses.dataclass(frozen=True)
class Method:
    """One line of the registry: `defaults` are the options that may be set, with their values when they are not."""

    title: str
    loss: LossFactory
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head: Literal["linear", "cosine"] = "linear"
    bias: bool = True
    deferred: bool = False
    repulsion: bool = False
    mixup: bool = True


@dataclasses.dataclass(frozen=True)
class MethodParts:
    """A method made for one run; a schedule is a function of the epoch, or None where nothing changes."""

    head: nn.Module
    weight: Callable[[int], torch.Tensor | None] | None = None
    regularizer: nn.Module | None = None
    strength: Callable[[int], float] | None = None


def _plain(name: str) -> LossFactory:
    return lambda setting, options: getattr(losses, name)(**options)


def _counted(name: str, **fixed: Any) -> LossFactory:
    return lambda setting, options: getattr(losses, name)(setting.class_counts, **fixed, **options)


def _estimated_offset(setting: Setting, options: dict[str, Any]) -> nn.Module:
    return losses.EstimatedOffsetLoss(setting.num_classes, setting.in_features, **options)


_LDAM = {"max_margin": 0.5, "scale": 30.0}
_DBM = {"max_margin": 0.1, "tau": 1.0, "instance": 1.0, "scale": 30.0}

BASE_METHODS: dict[str, Method] = {
    "ce": Method("cross-entropy", _plain("CrossEntropyLoss")),
    "focal": Method("focal loss", _plain("FocalLoss"), {"gamma": 2.0}),
    "cb": Method("class-balanced weights", _counted("ClassBalancedLoss"), {"beta": 0.9999, "gamma": 0.0}),
    "bs": Method("balanced softmax", _counted("BalancedSoftmaxLoss")),
    "la": Method("logit adjustment", _counted("LogitAdjustmentLoss"), {"tau": 1.0}),
    "arb": Method("ARB-loss, counts of the training set", _counted("ARBLoss", counts="global")),
    "arb-batch": Method("ARB-loss, counts of the batch", lambda setting, options: losses.ARBLoss(counts="batch")),
    "ldam": Method("LDAM", _counted("LDAMLoss"), _LDAM, head="cosine"),
    "ldam-drw": Method("LDAM, deferred re-weighting", _counted("LDAMLoss"), _LDAM, head="cosine", deferred=True),
    "dbm-ce": Method("DBM on cross-entropy", _counted("DBMLoss", base="ce"), _DBM, head="cosine"),
    "dbm-bs": Method("DBM on balanced softmax", _counted("DBMLoss", base="bs"), _DBM, head="cosine"),
    "dbm-cb": Method("DBM, deferred re-weighting", _counted("DBMLoss", base="cb"), _DBM, head="cosine", deferred=True),
    "cosface": Method("CosFace", _plain("CosFaceLoss"), {"margin": 0.35, "scale": 64.0}, head="cosine"),
    "arcface": Method("ArcFace", _plain("ArcFaceLoss"), {"margin": 0.5, "scale": 64.0}, head="cosine"),
    "lade": Method(
        "LADE", _counted("LADELoss"), {"alpha": 0.1, "lam": 0.1, "importance": "class", "classes": "all"}, mixup=False
    ),
    "estimated-offset": Method(
        "estimated offset",
        _estimated_offset,
        {"center_weight": 1.0, "uniform_weight": 1.0, "centers": "wen", "center_rate": 0.5},
        bias=False,
        mixup=False,
    ),
    "las": Method(
        "label-aware smoothing",
        _counted("LabelAwareSmoothingLoss"),
        {"head": 0.3, "tail": 0.0, "shape": "concave", "power": 1.0, "spread": "all"},
    ),
}


def method_names() -> list[str]:
    """Every method by its plain name; each may carry the suffix -lwr (logit-weight repulsion added)."""
    return list(BASE_METHODS)


def find_method(name: str) -> Method:
    """The registry's line for a name such as `bs` or `bs-lwr`."""
    base = name.removesuffix(REPULSION_SUFFIX)
    if base not in BASE_METHODS:
        raise unknown_name(f"method (each also with {REPULSION_SUFFIX} appended)", name, BASE_METHODS)
    method = BASE_METHODS[base]
    if base == name:
        return method
    return dataclasses.replace(method, title=f"{method.title} + logit-weight repulsion", repulsion=True)


def method_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: the defaults with `options` put over them, each checked to be of its default's kind."""
    method = find_method(name)
    result = dict(method.defaults)
    result.update(DEFERRED_DEFAULTS if method.deferred else {})
    result.update(REPULSION_DEFAULTS if method.repulsion else {})
    for key, value in options.items():
        if key not in result:
            raise unknown_name(f"method_options of {name}", key, result or ["(none)"])
        result[key] = _of_kind(f"method_options.{key}", value, result[key])
    return result


def _of_kind(key: str, value: Any, default: Any) -> Any:
    kind = "true or false" if isinstance(default, bool) else "a number" if isinstance(default, float) else "a name"
    try:
        if isinstance(default, bool) == isinstance(value, bool) and isinstance(default, str) == isinstance(value, str):
            return type(default)(value)
        if isinstance(default, float) and isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{key} must be {kind}, got {value!r}")


def build_method(name: str, setting: Setting, options: Mapping[str, Any]) -> MethodParts:
    """The head (loss inside), schedules and regularizer of a method, for one run."""
    method, chosen = find_method(name), method_options(name, options)
    deferred = {key: chosen.pop(key) for key in DEFERRED_DEFAULTS if key in chosen}
    repulsion = {key: chosen.pop(key) for key in REPULSION_DEFAULTS if key in chosen}
    try:
        loss = method.loss(setting, chosen)
        if method.head == "cosine":
            head: nn.Module = CosineHead(setting.in_features, setting.num_classes, loss)
        else:
            head = LinearHead(setting.in_features, setting.num_classes, loss, bias=method.bias)
        weight = _deferred(setting, **deferred) if deferred else None
        regularizer, strength = _repulsion(setting, **repulsion) if repulsion else (None, None)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method {name} with method_options {dict(options)}: {error}") from error
    return MethodParts(head, weight, regularizer, strength)


def _deferred(setting: Setting, drw_start: float, drw_beta: float) -> DeferredReweighting:
    if not 0 <= drw_start <= 1:
        raise ConfigError(f"method_options.drw_start must be a share of the epochs, 0 to 1, got {drw_start!r}")
    return DeferredReweighting(setting.class_counts, start_epoch=round(drw_start * setting.epochs), beta=drw_beta)


def _repulsion(
    setting: Setting,
    lwr_threshold: float,
    lwr_project: bool,
    lwr_strength: float,
    lwr_power: float,
    lwr_neighbours: Literal["all", "list"],
    lwr_skin: float,
) -> tuple[nn.Module, Callable[[int], float]]:
    decay = PolynomialDecay(setting.epochs, power=lwr_power)
    term = LogitWeightRepulsion(lwr_threshold, lwr_project, neighbours=lwr_neighbours, skin=lwr_skin)
    return term, lambda epoch: lwr_strength * decay(epoch)
