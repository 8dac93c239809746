"""One loss from either source (logits, or features and class weights), any kind of target, and the reductions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.accuracy import Accuracy
from lt_kernels.core.numbers import accumulate_type, autocast
from lt_kernels.core.targets import divisor_of
from lt_kernels.core.terms import CODES, Terms
from lt_kernels.margins import Margin, MixedTarget
from lt_kernels.ops import margins, prepare
from lt_kernels.ops.backends import library
from lt_kernels.ops.sources import Logits, Source, capped, judged, summed


def evaluate(source: Source, shape: tuple[int, ...], target: Any, reduction: str, **settings: Any) -> Tensor:
    """The reduced loss of `source`, whose flat rows stand for logits of `shape` ([C], [N, C], [N, C, d1, ...])."""
    library.say_once()
    if torch.compiler.is_compiling():
        return _evaluate(source, shape, target, reduction, **settings)
    try:
        return _evaluate(source, shape, target, reduction, **settings)
    except RuntimeError as error:
        raise checks.named(error) from None


def _evaluate(
    source: Source,
    shape: tuple[int, ...],
    target: Tensor | MixedTarget,
    reduction: str,
    *,
    scale: float = 1.0,
    margin: Margin | None = None,
    class_margin: Tensor | None = None,
    average: str = "weighted",
    sample_weight: Tensor | None = None,
    softcap: float | None = None,
    shift: int = 0,
    accuracy: Accuracy | None = None,
    **settings: Any,
) -> Tensor:
    checks.choice("reduction", reduction, ("none", "mean", "sum"))
    places = shape[:1] + shape[2:] if len(shape) > 1 else ()
    like, classes = source.tensor, source.classes
    ahead = prepare.Ahead(shift, places, source.ranks is not None)
    by_row = prepare.sample_weights(sample_weight, places, like, ahead)
    _countable(accuracy, target)
    source = _saying(capped(source, softcap), target, reduction, average, by_row, settings)
    if prepare.is_probability(target):
        ahead.refuse(target)
        losses = _probabilities(source, shape, target, by_row, settings, scale, margin)
        return finish([(losses, None, 1.0)], places, reduction, Terms(sample_weight=by_row), source)
    settings.update(scale=scale, margin=margin, class_margin=class_margin, sample_weight=by_row)
    if isinstance(target, MixedTarget):
        return _mixed(source, shape, target, reduction, average, ahead, settings)
    flat = _counting(checks.indices("target", target, places, like), ahead, settings)
    terms = prepare.terms(like, shape, classes, flat, **settings)
    given = flat, terms, reduction if source.ranks is None else "sum", average, accuracy
    losses = None if source.ranks is not None and reduction == "none" else source.reduced(*given)
    if source.ranks is None and losses is not None:
        return _as_expected(losses, places, reduction, like)
    if losses is None:
        losses = source.loss(flat, terms) if accuracy is None else judged(source, flat, terms, accuracy)
    return finish([(losses, flat, 1.0)], places, reduction, _averaged(terms, average), source)


def _countable(accuracy: Accuracy | None, target: Any) -> None:
    """Raise where no single class is right."""
    if accuracy is not None and not isinstance(accuracy, Accuracy):
        raise TypeError(f"accuracy must be a functional.Accuracy or None, got {type(accuracy).__name__}")
    if accuracy is not None and (isinstance(target, MixedTarget) or prepare.is_probability(target)):
        raise ValueError(f"accuracy must be None where a target is no class index, got {type(target).__name__}")


def _counting(target: Tensor, ahead: prepare.Ahead, settings: dict[str, Any]) -> Tensor:
    """The targets [N]; rows of weight 0 are ignored, so that they have no gradient whatever their logits are."""
    by_row, skipped = settings["sample_weight"], checks.ignored("ignore_index", settings["ignore_index"])
    flat = ahead.of(target, skipped).reshape(-1)
    return flat if by_row is None else torch.where(by_row == 0, skipped, flat)


def _averaged(terms: Terms, average: str) -> Terms:
    """The terms that a mean divides by: with average="batch" without the class weights."""
    return terms if average == "weighted" else terms._replace(weight=None)


def _mixed(
    source: Source,
    shape: tuple[int, ...],
    target: MixedTarget,
    reduction: str,
    average: str,
    ahead: prepare.Ahead,
    settings: dict[str, Any],
) -> Tensor:
    """The loss for two targets a row, in one pass over the classes."""
    places, like = shape[:1] + shape[2:] if len(shape) > 1 else (), source.tensor
    named = (("first", target.first), ("second", target.second))
    flat = [_counting(checks.indices(name, value, places, like), ahead, settings) for name, value in named]
    lams = _lams(target.lam, places)  # checked before the ranks of a sharded head exchange anything
    terms = [prepare.terms(like, shape, source.classes, one, **settings) for one in flat]
    if terms[0].offset_row is None:
        both = torch.stack(flat, 1)
        found = source.statistics(both, terms[0])
        losses = margins.mixed_losses(found, flat, summed(source, terms[0], found[-1], both), source.norm)
    else:  # an offset that depends on the target's class makes two different rows of logits
        losses = [source.loss(one, term) for one, term in zip(flat, terms, strict=True)]
    parts = list(zip(losses, flat, lams, strict=True))
    return finish(parts, places, reduction, _averaged(terms[0], average), source)


def simple(
    source: Source,
    target: Any,
    reduction: str,
    *,
    weight: Tensor | None,
    offset: Tensor | None,
    focal_gamma: float,
    label_smoothing: float | Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None = None,
    shift: int = 0,
    accuracy: Accuracy | None = None,
    scale: float = 1.0,
    margin: Margin | None = None,
) -> Tensor | None:
    """The loss of the public functions' most frequent calls, with the fewest steps; None for every other call."""
    kinds = (type(focal_gamma), type(label_smoothing), type(ignore_index), type(reduction))
    if kinds != (float, float, int, str) or label_smoothing or not 0 <= focal_gamma < math.inf:
        return None
    if z_loss != 0.0 or softcap is not None or shift != 0 or accuracy is not None:
        return None
    if (margin is not None and margin.per_class is not None) or reduction not in CODES:
        return None
    like = source.tensor
    if abs(ignore_index) >= 2**63 or not prepare.simple(like, source.classes, target, weight, offset):
        return None
    kind = accumulate_type(like.dtype)
    terms = prepare.simple_terms(kind, weight, offset, scale, focal_gamma, ignore_index)
    if margin is not None:
        terms = prepare.with_margin(terms, margin, None, source.classes, like, kind)
    return one_target(source, target, terms, reduction, "weighted")


def one_target(source: Source, target: Tensor, terms: Terms, reduction: str, average: str) -> Tensor | None:
    """The reduced loss of class indices [N] on the direct way, with terms checked before; None where there is none."""
    library.say_once()
    try:
        loss = source.reduced(target, terms, reduction, average)
    except RuntimeError as error:
        raise checks.named(error) from None
    like = source.tensor
    if loss is None or loss.dtype is like.dtype or autocast(like):
        return loss
    return loss.to(like.dtype)


def _saying(
    source: Source, target: Any, reduction: str, average: str, by_row: Tensor | None, settings: dict[str, Any]
) -> Source:
    """The source, with the settings that must be equal on every rank if its classes or its rows are sharded."""
    if source.ranks is not None:
        same = {name: value for name, value in settings.items() if not (isinstance(value, Tensor) and value.ndim > 1)}
        kind = type(target).__name__, str(getattr(target, "dtype", None)), source.tensor.requires_grad
        same |= {"reduction": reduction, "average": average, "target": kind, "softcap": source.softcap}
        source.ranks.agree(*same.items())
    if isinstance(source, Logits) or source.shard is None:
        return source
    lam = target.lam if isinstance(target, MixedTarget) else None
    sample = None if source.chosen is None else source.chosen.sampling
    said = (("reduction", reduction), ("average", average), ("lam", lam), ("sample", sample))
    said += (("softcap", source.softcap), ("sample_weight", by_row), ("z_loss", settings.get("z_loss", 0.0)))
    return source._replace(shard=source.shard._replace(said=said))


def _lams(lam: float | Tensor, places: tuple[int, ...]) -> list[Any]:
    if isinstance(lam, Tensor):
        checks.stored("lam", lam)
    if isinstance(lam, Tensor) and lam.ndim == 1:
        if not places or lam.shape[0] != places[0]:
            raise ValueError(f"lam must have one number for each of the {list(places[:1])} rows, got {list(lam.shape)}")
        lam = lam.reshape(-1, *(1,) * (len(places) - 1)).expand(places).reshape(-1)
    return [lam, 1 - lam]


def _probabilities(
    source: Source,
    shape: tuple[int, ...],
    target: Tensor,
    by_row: Tensor | None,
    settings: dict[str, Any],
    scale: float,
    margin: Any,
) -> Tensor:
    """The loss for class probabilities: total * rest - mean, with the probabilities as the shares of the mean.

    Both are taken of u less the row's largest, which leaves the difference unchanged; the z-loss is of u itself.
    """
    _check_dense(source, shape, target, settings, margin)
    source = source if by_row is None else source.without(by_row == 0)
    flat = target[None] if target.ndim == 1 else target.movedim(1, -1).reshape(-1, source.classes)
    terms = prepare.probability_terms(source.tensor, shape, source.classes, flat, scale=scale, **settings)
    if target.requires_grad:
        found = _dense(source, terms)
    else:
        rest, _, _, mean, _, top, _ = source.statistics(flat.new_empty((flat.shape[0], 0), dtype=torch.int64), terms)
        found = terms.total * rest - mean
        found = found + terms.z_loss * (rest + top).square() if terms.z_loss else found
        found = found * torch.where(top == -torch.inf, torch.nan, 1.0)  # without any class there is no softmax
    return found if by_row is None else by_row * found


def _check_dense(source: Source, shape: tuple[int, ...], target: Tensor, settings: dict[str, Any], margin: Any) -> None:
    """Raise for probabilities of another shape or place, or with what is defined for class indices alone."""
    if margin is not None:
        raise ValueError("target must hold class indices where a margin is set, got probabilities (see MixedTarget)")
    if settings["focal_gamma"]:
        raise ValueError(f"focal_gamma must be 0 with probabilities as target, got {settings['focal_gamma']!r}")
    if isinstance(settings["label_smoothing"], Tensor) and settings["label_smoothing"].ndim:
        raise ValueError("label_smoothing must be a number with probabilities as target, got one for each class")
    check_shapes(target, shape)
    checks.same_device("target", checks.stored("target", target), source.tensor)


def check_shapes(target: Any, shape: tuple[int, ...]) -> None:
    """Raise for a target that does not belong to logits of this shape, as the loss of these would."""
    places = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if isinstance(target, MixedTarget):
        for name, value in (("first", target.first), ("second", target.second)):
            checks.indices(name, value, places, value)
        _lams(target.lam, places)
    elif not prepare.is_probability(target):
        checks.indices("target", target, places, target)
    elif tuple(target.shape) != shape:
        raise ValueError(f"target must have shape {list(shape)} where it holds probabilities, got {list(target.shape)}")


def _dense(source: Source, terms: Terms) -> Tensor:
    """The same in plain torch, for the rare target that is itself learned."""
    if not isinstance(source, Logits):
        raise ValueError("target must not require a gradient here; offset_cross_entropy gives one for probabilities")
    share = terms.mean_weight
    assert share is not None  # probability_terms set it
    u = terms.scale * source.logits().to(share.dtype)
    u = u if terms.offset is None else u + terms.offset
    nothing = (u == -torch.inf) & (share == 0)  # 0 * log 0 is 0
    found = -(share * torch.log_softmax(u, 1).masked_fill(nothing, 0.0)).sum(1)
    return found + terms.z_loss * u.logsumexp(1).square() if terms.z_loss else found


def finish(
    parts: list[tuple[Tensor, Tensor | None, Any]],
    places: tuple[int, ...],
    reduction: str,
    terms: Terms,
    source: Source,
) -> Tensor:
    """Sum of share * reduced loss over the parts (loss [N], target or None, share), in the dtype users expect.

    A mean divides by the weights in `terms`.
    """
    values, divisors = [], []
    for loss, target, share in parts:
        value = loss if isinstance(share, float) and share == 1.0 else share * loss
        values.append(value if reduction == "none" or value.ndim == 0 else value.sum())
        divisors.append(_divisor(loss, target, terms) if reduction == "mean" else None)
    if source.ranks is not None:
        values = source.ranks.reduced(values, divisors, reduction)
    elif reduction == "mean":
        values = [value / divisor for value, divisor in zip(values, divisors, strict=True)]
    return _as_expected(values[0] if len(values) == 1 else values[0] + values[1], places, reduction, source.tensor)


def _as_expected(result: Tensor, places: tuple[int, ...], reduction: str, like: Tensor) -> Tensor:
    """The shape of the class indices, and float32 under autocast, else the dtype of the input."""
    result = result.reshape(places) if reduction == "none" and len(places) != 1 else result
    if result.dtype == like.dtype or autocast(like):
        return result
    return result.to(like.dtype)


def _divisor(loss: Tensor, target: Tensor | None, terms: Terms) -> Any:
    """What "mean" divides by: the rows' weights, ignored rows left out; the number of places for probabilities."""
    if target is not None:
        return divisor_of(target, terms.weight, terms.ignore_index, terms.sample_weight)
    if terms.sample_weight is not None:
        return terms.sample_weight.sum()
    return max(loss.shape[0], 0) if loss.shape[0] else loss.new_zeros(())
