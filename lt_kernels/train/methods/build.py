"""A method by its name: head, loss, schedules, regularizer and second stage, made for one run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from lt_kernels.core import checks
from lt_kernels.data.samplers import SAMPLERS
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.regularizers import LogitWeightRepulsion
from lt_kernels.schedules import DeferredReweighting, PolynomialDecay, SphereFaceAnnealing
from lt_kernels.train.config import unknown_name
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.method import (
    ANNEALING_DEFAULTS,
    DEFERRED_DEFAULTS,
    LOSS_OPTIONS,
    REPULSION_DEFAULTS,
    REPULSION_SUFFIX,
    RUN_OPTIONS,
    STAGE_DEFAULTS,
    WORDS,
    Method,
    MethodParts,
    Options,
    SecondStage,
    Setting,
    StageFactory,
)
from lt_kernels.train.methods.registry import BASE_METHODS


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
    source = f"{method.source}; logit-weight repulsion"
    return dataclasses.replace(method, title=f"{method.title} + logit-weight repulsion", repulsion=True, source=source)


def method_options(name: str, options: Mapping[str, Any]) -> Options:
    """All options of a method: the defaults with `options` put over them, each checked to be of its default's kind.

    Those of `LOSS_OPTIONS` are among them where they are given.
    """
    method = find_method(name)
    result: Options = dict(STAGE_DEFAULTS if method.second else {})
    result.update(DEFERRED_DEFAULTS if method.deferred else {})
    result.update(ANNEALING_DEFAULTS if method.annealed else {})
    result.update(REPULSION_DEFAULTS if method.repulsion else {})
    result.update(method.defaults)
    known = {**result, **LOSS_OPTIONS}
    for key, value in options.items():
        if key not in known:
            raise unknown_name(f"method_options of {name}", key, known)
        words = WORDS.get(key, ())
        word = isinstance(value, str) and value in words
        result[key] = value if word else _of_kind(f"method_options.{key}", value, known[key], words)
    return result


def run_options(name: str, options: Mapping[str, Any]) -> Options:
    """The settings of the run that the method brings with it: its sampler, MixUp or CutMix."""
    chosen = method_options(name, options)
    return {key: chosen[key] for key in RUN_OPTIONS if key in chosen}


def _of_kind(key: str, value: Any, default: Any, words: tuple[str, ...] = ()) -> Any:
    flag = f"true, false or {' or '.join(words)}" if words else "true or false"
    number = "a whole number" if isinstance(default, int) else "a number"
    kind = flag if isinstance(default, bool) else "a name" if isinstance(default, str) else number
    try:
        if isinstance(default, bool) == isinstance(value, bool) and isinstance(default, str) == isinstance(value, str):
            if not isinstance(default, int) or isinstance(default, bool) or int(value) == value:
                return type(default)(value)
        elif isinstance(default, float) and isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{key} must be {kind}, got {value!r}")


def _take(chosen: Options, names: Any) -> Options:
    return {key: chosen.pop(key) for key in names if key in chosen}


def build_method(name: str, setting: Setting, options: Mapping[str, Any]) -> MethodParts:
    """The head (loss inside), schedules, regularizer and second stage of a method, for one run."""
    method, chosen = find_method(name), method_options(name, options)
    _take(chosen, RUN_OPTIONS)
    deferred, repulsion = _take(chosen, DEFERRED_DEFAULTS), _take(chosen, REPULSION_DEFAULTS)
    annealed = _take(chosen, ANNEALING_DEFAULTS)
    stage, of_head = _take(chosen, STAGE_DEFAULTS), _take(chosen, method.head_options)
    of_readout, teacher = _take(chosen, method.readout_options), chosen.pop("teacher", "")
    if bool(teacher) != (chosen.get("distillation_weight", 0) > 0):
        allowed = "a run where distillation_weight is above 0, and only there"
        shown = f"{teacher!r} with {chosen['distillation_weight']:g}"
        raise ConfigError(f"method_options.teacher must name {allowed}, got {shown}")
    whole = callable(method.head) or method.second or method.readout or method.closing
    if setting.mesh is not None and whole:
        raise ConfigError(
            f"head must be replicated with the method {name}, which needs all class weights, got 'sharded'"
        )
    try:
        head = _head(method, setting, method.loss(setting, chosen), of_head)
        weight = _deferred(setting, head.loss, **deferred) if deferred else None
        annealing = _annealing(**annealed) if annealed else None
        regularizer, strength = _repulsion(setting, **repulsion) if repulsion else (None, None)
        second = _second(method.second, setting, head, of_head, **stage) if method.second else None
        readout = method.readout(setting, of_readout) if method.readout else None
        closing = method.closing(setting, of_readout) if method.closing else None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method {name} with method_options {dict(options)}: {error}") from error
    rest = (closing, of_head.get("views", method.views), method.unit_rows, teacher)
    return MethodParts(head, weight, annealing, regularizer, strength, second, readout, *rest)


def _head(method: Method, setting: Setting, loss: nn.Module, options: Options) -> nn.Module:
    if method.head == "cosine":
        return CosineHead(setting.in_features, setting.num_classes, loss, mesh=setting.mesh)
    if method.head == "linear":
        return LinearHead(setting.in_features, setting.num_classes, loss, bias=method.bias, mesh=setting.mesh)
    return method.head(setting, loss, options)


def _second(
    make: StageFactory,
    setting: Setting,
    head: nn.Module,
    options: Options,
    second_share: float,
    second_rate: float,
    second_sampler: str,
) -> SecondStage:
    if not (0 < second_share < math.inf and 0 < second_rate < math.inf):
        shown = f"{second_share!r} and {second_rate!r}"
        raise ConfigError(f"second_share and second_rate must be finite and above 0, got {shown}")
    if second_sampler not in SAMPLERS:
        raise unknown_name("method_options.second_sampler", second_sampler, SAMPLERS)
    module, parameters = make(setting, head, options)
    return SecondStage(module, parameters, max(1, round(second_share * setting.epochs)), second_rate, second_sampler)


def _deferred(
    setting: Setting, loss: Any, drw_start: float, drw_beta: float, drw_normalize: bool, drw_average: str
) -> DeferredReweighting:
    if not 0 <= drw_start <= 1:
        raise ConfigError(f"method_options.drw_start must be a share of the epochs, 0 to 1, got {drw_start!r}")
    loss.average = checks.choice("drw_average", drw_average, ("weighted", "batch"))
    return DeferredReweighting(setting.class_counts, round(drw_start * setting.epochs), drw_beta, drw_normalize)


def _annealing(annealing_high: float, annealing_low: float, annealing_rate: float) -> SphereFaceAnnealing:
    low = checks.number("annealing_low", annealing_low, 0.0)
    if annealing_high < low:
        raise ValueError(f"annealing_high must be at least annealing_low, {low}, got {annealing_high}")
    high = checks.number("annealing_high", annealing_high)
    return SphereFaceAnnealing(high, low, checks.number("annealing_rate", annealing_rate, 0.0))


def _repulsion(
    setting: Setting,
    lwr_threshold: float,
    lwr_project: bool | Literal["raw"],
    lwr_strength: float,
    lwr_power: float,
    lwr_neighbours: Literal["all", "list"],
    lwr_skin: float,
) -> tuple[nn.Module, Callable[[int], float]]:
    checks.number("lwr_strength", lwr_strength, 0.0)
    decay = PolynomialDecay(setting.epochs, power=lwr_power)
    term = LogitWeightRepulsion(lwr_threshold, lwr_project, neighbours=lwr_neighbours, skin=lwr_skin)
    return term, lambda epoch: lwr_strength * decay(epoch)


def total_epochs(name: str, epochs: int, options: Mapping[str, Any]) -> int:
    """The epochs of a run, those of a second stage included."""
    if find_method(name).second is None:
        return epochs
    return epochs + max(1, round(method_options(name, options)["second_share"] * epochs))
