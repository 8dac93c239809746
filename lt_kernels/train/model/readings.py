"""What a trained classifier makes of its data: features, predictions, logits, from which every analysis is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels import metrics
from lt_kernels.data import LongTailedData
from lt_kernels.data.base import IGNORED
from lt_kernels.heads import LinearHead
from lt_kernels.heads.scale import classifying, has_cosines, scaled
from lt_kernels.margins import Margin, SphereFace
from lt_kernels.train.model.gradients import components_of

SAMPLES = 2**18  # of the training set, for the means of its classes
LOGITS = 2**25  # numbers in one matrix of logits
PIXELS = 2**20  # of the test set, where each is a sample
ROWS = 256  # inputs at a time

Pair = tuple[Tensor, Tensor]  # features or logits [N, ...] and classes [N]


@dataclasses.dataclass(frozen=True)
class Reading:
    """A classifier and its data, on the CPU; for a head of cosines, class weights and features have length 1.

    class_counts: [C], of what `counted` says. weight: [C, d]. centers: [C, d], where the loss has them. train, test:
    features [N, d] and classes [N]. prediction, confidence: of the test set, [N]. logits: what the softmax takes, of
    some test samples drawn evenly, and their classes. logit_means: of all test samples, by class. components: of the
    gradient over the training set, or why there are none. margin: of the loss, where it has one. raw: the test features
    as the network gives them. bias: that a linear head trained [C]. offset: what is subtracted in prediction from the
    logits of weight and features [C], None where they are not what predicts.
    """

    class_counts: Tensor
    weight: Tensor
    train: Pair
    test: Pair
    prediction: Tensor
    confidence: Tensor
    logits: Pair
    logit_means: dict[str, Any]
    components: dict[str, Tensor] | str
    centers: Tensor | None = None
    counted: str = "samples"
    margin: Margin | None = None
    raw: Tensor | None = None
    bias: Tensor | None = None
    offset: Tensor | None = None


def take_reading(module: Any, data: LongTailedData) -> Reading:
    """Put the training set (or a share of every class, where it is large) and the test set through a classifier; where
    pixels have classes, each counts as a sample.
    """
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        classes, head = data.num_classes, trained_head(module)
        train = features_of(module, data.train, evenly_by_class(data.train[1], classes, SAMPLES))
        test = features_of(module, data.test, evenly(len(data.test[1]), whole(data.test[1], PIXELS)))
        natural = features_of(module, data.train, evenly(len(data.train[1]), whole(data.train[1], LOGITS // classes)))
        some = evenly(len(test[1]), LOGITS // classes)
        prediction, confidence, means = _predictions(module, test, classes)
        centers = centers_of(head)
        reading = Reading(
            class_counts=data.class_counts if data.group_counts is None else data.group_counts,
            counted=data.units[0 if data.group_counts is None else 1],
            weight=weights_of(head, classes).cpu(),
            train=(as_used(head, train[0]).cpu(), train[1]),
            test=(as_used(head, test[0]).cpu(), test[1]),
            prediction=prediction,
            confidence=confidence,
            logits=(scores(module, test[0][some]).cpu(), test[1][some]),
            logit_means=means,
            components=_components(module, head, natural),
            centers=None if centers is None else centers.cpu(),
            margin=margin_of(head),
            raw=of_first(head, test[0]).cpu(),
            bias=None if (bias := bias_of(module)) is None else bias.cpu(),
            offset=offset_of(module, classes),
        )
    module.train(was_training)
    return reading


def _components(module: Any, head: Any, pair: Pair) -> dict[str, Tensor] | str:
    """Of the gradient over samples of the training set, or why there are none."""
    return "its classifier was changed after training" if _replaced(module) else components_of(head, *pair)


def _replaced(module: Any) -> bool:
    """Whether the method put something else into the head once it was trained."""
    return getattr(getattr(module, "parts", None), "closing", None) is not None


def whole(target: Tensor, most: int) -> int:
    """How many inputs there may be for `most` samples: fewer, where each of an input's pixels is one."""
    return max(1, most // math.prod(target.shape[1:]))


def at_once(target: Tensor) -> int:
    """How many inputs the network takes at a time: fewer, where each has very many pixels with a class."""
    return min(ROWS, whole(target, PIXELS))


def evenly(length: int, most: int) -> Tensor:
    """At most `most` (at least one) of 0..length - 1, evenly spaced: the same on every call."""
    most = max(1, most)
    return torch.arange(length) if length <= most else torch.arange(most) * length // most


def evenly_by_class(target: Tensor, num_classes: int, most: int) -> Tensor:
    """The places of all inputs, or where they are more than `most`, of at most `most / C` of each class, evenly
    spaced; ascending. Of inputs whose pixels have classes, as many as have `most` pixels.
    """
    if target.ndim > 1 or len(target) <= most:
        return evenly(len(target), whole(target, most))
    order, counts = target.argsort(stable=True), torch.bincount(target, minlength=num_classes)
    parts = [part[evenly(len(part), most // num_classes)] for part in order.split(counts.tolist()) if len(part)]
    return torch.cat(parts).sort().values


def features_of(module: Any, pair: tuple[Any, Tensor], chosen: Tensor) -> Pair:
    """The network's features [N, d] of chosen inputs, where the network is, and their classes; pixels without a class
    are left out.
    """
    device, parts = trained_head(module).weight.device, []
    for part in chosen.split(at_once(pair[1])):
        features = module.features(pair[0].index_select(0, part).to(device))
        parts.append(features.flatten(0, -2))
    target = pair[1].index_select(0, chosen).flatten()
    known = target != IGNORED
    return torch.cat(parts)[known.to(device)], target[known]


def of_first(head: Any, vectors: Tensor) -> Tensor:
    """Features or class weights as they are. Of several experts, the first one's."""
    return vectors.detach().float()[..., : head.weight.shape[1]]


def as_used(head: Any, vectors: Tensor) -> Tensor:
    """Features or class weights as the head uses them: of length 1 for cosines. Of several experts, the first one's."""
    vectors = of_first(head, vectors)
    return F.normalize(vectors, dim=-1) if has_cosines(head) else vectors


def weights_of(head: Any, classes: int) -> Tensor:
    """The class weights [C, d] as the head uses them. Of several experts, the first one's."""
    return as_used(head, head.weight[:classes])


def centers_of(head: Any) -> Tensor | None:
    """The centres [C, d] of the classes that the loss learns, where it does."""
    centers = getattr(getattr(getattr(head, "loss", None), "center_loss", None), "centers", None)
    return None if centers is None else centers.detach()


def margin_of(head: Any) -> Margin | None:
    """The margin of a head's loss, as it was in the last step."""
    loss = classifying(head)
    margin = getattr(loss, "margin", None)
    return SphereFace(margin.margin, loss.annealing) if isinstance(margin, SphereFace) else margin


def bias_of(module: Any) -> Tensor | None:
    """The bias [C] that a linear head trains, where it does and has kept it."""
    head = trained_head(module)
    bias = head.bias if isinstance(head, LinearHead) and not _replaced(module) else None
    return None if bias is None else bias.detach()


def offset_of(module: Any, classes: int) -> Tensor | None:
    """What prediction subtracts from w.x, or from the cosines, float64 [C] on the CPU; None where it reads the logits
    out in another way.
    """
    head, offset = trained_head(module), torch.zeros(classes, dtype=torch.float64)
    if getattr(getattr(module, "parts", None), "readout", None) is not None:
        return None
    if not isinstance(head, LinearHead):
        return offset if has_cosines(head) else None
    for part in (head.bias, head.loss.predicted_offset(head.weight)):
        offset = offset if part is None else offset - part.detach().cpu()
    return offset


def scores(module: Any, features: Tensor) -> Tensor:
    """What the softmax takes, without the loss's margin and offset, [N, C]: its largest entry is the prediction."""
    return scaled(trained_head(module), module.classify(features).float(), features.float())


def trained_head(module: Any) -> Any:
    """The head whose class weights predict: that of the last stage, where it has some."""
    return module.active_head if hasattr(module.active_head, "weight") else module.head


def _chunks(pair: Pair, classes: int) -> Iterator[Pair]:
    size = max(1, LOGITS // classes)
    yield from zip(pair[0].split(size), pair[1].split(size), strict=True)


def _predictions(module: Any, test: Pair, classes: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Prediction [N], confidence [N], and the mean logits by class of all samples, from those of chunks."""
    predictions, confidences, parts, sizes = [], [], [], []
    for features, target in _chunks(test, classes):
        logits = scores(module, features).cpu()
        best = logits.softmax(1).max(1)
        predictions.append(best.indices)
        confidences.append(best.values)
        parts.append(metrics.logit_statistics(logits, target))
        own = torch.bincount(target, minlength=classes).double()
        sizes.append({"positive": own, "negative": len(target) - own})
    means = {name: _pooled([part[name] for part in parts], [size[name] for size in sizes]) for name in sizes[0]}
    return torch.cat(predictions), torch.cat(confidences), {**means, "log_classes": float(parts[0]["log_classes"])}


def _pooled(means: list[Tensor], sizes: list[Tensor]) -> Tensor:
    """The mean over all chunks, NaN for a class without samples."""
    total = sum(torch.where(size > 0, mean.double() * size, 0.0) for mean, size in zip(means, sizes, strict=True))
    return torch.as_tensor(total) / torch.stack(sizes).sum(0)
