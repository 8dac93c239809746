"""What the analyses of finished runs come to, as plain arrays by class, ready to be drawn and written."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels import metrics
from lt_kernels.train.analysis.margins import MarginCurves, margin_curves
from lt_kernels.train.files import Which
from lt_kernels.train.model.readings import Reading, evenly, take_reading
from lt_kernels.train.run.components import History, read_history

BLOCKS = 48  # rows of a drawn matrix of classes; more classes are averaged in blocks
SEPARATED = 200  # classes whose pairs are looked at for Fisher's separability
RIDGE = 1e-2  # of that: units that are always zero, and classes with fewer samples than features, leave it unbounded
CALIBRATION_BINS = 15
HISTOGRAM_BINS = 60
BIAS = "trained bias"  # among the offsets: what it subtracts
SUMMARY = {"raw": "separability", "unit": "separability_unit"}  # its names in the summary
GROUPS = ("many", "medium", "few")

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix between classes by descending count, in blocks: `starts` [B + 1] are ranks, `values` [B, B] the means
    over the pairs of different classes, NaN where there is none.
    """

    values: Array
    starts: Array


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Densities over `edges` [bins + 1] by group of classes and sign ("positive", "negative")."""

    edges: Array
    densities: dict[tuple[str, str], Array]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All numbers of one run; [C] arrays are by class, `counts` are of what `counted` says, `order` [C] lists the
    classes by descending count.

    accuracy: percent. affinity: shares of a row, 1 being an even share. angles: degrees of every test sample
    ("weight", "mean"). offsets: "test features", "training features", "centres", and what the "trained bias" subtracts.
    components: "attraction", "repulsion", or why there are none. logit_means: "positive", "negative". separability: of
    the classes in `separated`, of "raw" and of "unit" features. boundaries: of these classes, or None. calibration: a
    row a bin, (least confidence, samples, mean confidence, accuracy). summary: single numbers by name.
    """

    name: str
    counts: Array
    class_names: Sequence[str]
    order: Array
    accuracy: Array
    false_positives: Array
    cumulative: Array
    similarity: Matrix
    affinity: Matrix
    offsets: dict[str, Array]
    target: Array
    angles: dict[str, Array]
    components: dict[str, Array] | str
    logit_means: dict[str, Array]
    log_classes: float
    histogram: Histogram
    separated: Array
    separability: dict[str, Array]
    calibration: Array
    summary: dict[str, float]
    history: History | None = None
    counted: str = "samples"
    margins: MarginCurves | None = None
    boundaries: Array | None = None

    def of_all(self, values: Array) -> Array:
        """Numbers of the classes in `separated` as numbers of all classes, NaN for the others."""
        whole = np.full(len(self.counts), np.nan)
        whole[self.separated] = values
        return whole


def analyze_run(name: str, folder: Path, checkpoint: Which | None = None) -> Analysis:
    """Analyse the finished run of a folder; checkpoint and errors are those of `load_run`."""
    from lt_kernels.train.run.loading import load_run

    _, data, module = load_run(folder, checkpoint)
    history = read_history(folder, data.num_classes)
    return analyze(name, take_reading(module, data), data.class_names, history)


def analyze(name: str, reading: Reading, class_names: Sequence[str] = (), history: History | None = None) -> Analysis:
    """Compute everything from what a classifier made of its data."""
    counts, (features, target) = reading.class_counts, reading.test
    classes, order = len(counts), torch.argsort(counts, descending=True, stable=True)
    accuracy = metrics.per_class_accuracy(reading.prediction, target, classes)
    separated, angles = order[evenly(classes, SEPARATED)], _angles(features, target, reading.weight)
    separability = _separability(reading, separated)
    found = [(f"angle_{to}", value, target) for to, value in angles.items()]
    found += [(SUMMARY[kind], value, separated) for kind, value in separability.items()]
    return Analysis(
        name=name,
        counts=_array(counts),
        class_names=list(class_names) or [str(index) for index in range(classes)],
        order=_array(order),
        accuracy=100 * _array(accuracy),
        similarity=blocks(metrics.class_similarity(reading.weight[order])),
        affinity=blocks(metrics.affinity_matrix(reading.weight[order]) * (classes - 1)),
        offsets=_offsets(reading),
        target=_array(target),
        angles=angles,
        components=_components(reading.components),
        separated=_array(separated),
        separability=separability,
        summary=_summary(reading, accuracy, found),
        history=history,
        counted=reading.counted,
        margins=None if reading.margin is None else margin_curves(reading.margin, order),
        boundaries=_boundaries(reading, separated),
        **_of_predictions(reading),
    )


def _of_predictions(reading: Reading) -> dict[str, Any]:
    """What comes of predictions, confidences and logits alone."""
    counts, target, means = reading.class_counts, reading.test[1], reading.logit_means
    return {
        "false_positives": _array(metrics.false_positives(reading.prediction, target, len(counts))),
        "cumulative": _array(metrics.cumulative_false_positives(reading.prediction, target, counts)),
        "logit_means": {key: _array(means[key]) for key in ("positive", "negative")},
        "log_classes": float(means["log_classes"]),
        "histogram": histogram(*reading.logits, counts),
        "calibration": calibration(reading.confidence, reading.prediction == target),
    }


def _array(value: Tensor) -> Array:
    return value.detach().cpu().numpy().astype(float if value.is_floating_point() else int)


def _components(parts: dict[str, Tensor] | str) -> dict[str, Array] | str:
    return parts if isinstance(parts, str) else {name: _array(value) for name, value in parts.items()}


def groups_of(counts: Array) -> dict[str, Array]:
    """Which classes have many (more than 100), a medium number of and few (below 20) training samples: masks [C];
    groups that there are.
    """
    masks = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    return {name: mask for name, mask in masks.items() if mask.any()}


def blocks(matrix: Tensor, most: int = BLOCKS) -> Matrix:
    """The matrix itself without its diagonal, or where it is large, the means of blocks of rows and columns; what is
    NaN does not count.
    """
    classes = len(matrix)
    starts = evenly(classes, most).numpy()
    ends = np.append(starts, classes)
    means = np.full((len(starts), len(starts)), np.nan)
    for place, (first, last) in enumerate(itertools.pairwise(ends.tolist())):
        part = matrix[first:last].detach().cpu().double().numpy()
        known = np.isfinite(part)
        known[np.arange(last - first), np.arange(first, last)] = False
        pairs = np.add.reduceat(known.sum(0), starts)
        sums = np.add.reduceat(np.where(known, part, 0).sum(0), starts)
        np.divide(sums, pairs, out=means[place], where=pairs > 0)
    return Matrix(means, ends)


def _offsets(reading: Reading) -> dict[str, Array]:
    offsets = {
        "test features": metrics.empirical_offsets(*reading.test, reading.weight),
        "training features": metrics.empirical_offsets(*reading.train, reading.weight),
    }
    if reading.centers is not None:
        offsets["centres"] = metrics.estimated_offsets(reading.centers, reading.weight)
    if reading.bias is not None:
        offsets[BIAS] = -reading.bias
    return {name: _array(value) for name, value in offsets.items()}


def _angles(features: Tensor, target: Tensor, weight: Tensor) -> dict[str, Array]:
    means = metrics.class_means(features, target, len(weight)).to(features.dtype)
    pairs = {"weight": weight, "mean": means}
    return {name: np.degrees(_array(metrics.angular_distance(features, target, to))) for name, to in pairs.items()}


def _among(target: Tensor, chosen: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Which samples are of the chosen classes, and these classes' places among the chosen."""
    place = torch.full((classes,), -1).index_put((chosen,), torch.arange(len(chosen)))[target]
    return place >= 0, place[place >= 0]


def _separability(reading: Reading, chosen: Tensor) -> dict[str, Array]:
    """The separability of each of some classes from the others: of features as the network gives them, one kind for
    linear heads and those of cosines, and of features of length 1.
    """
    features = reading.test[0] if reading.raw is None else reading.raw
    known, place = _among(reading.test[1], chosen, len(reading.class_counts))
    kinds = {"raw": features[known], "unit": F.normalize(features[known], dim=1)}
    return {
        name: _array(metrics.fisher_separability(kind, place, len(chosen), ridge=RIDGE)) for name, kind in kinds.items()
    }


def _boundaries(reading: Reading, chosen: Tensor) -> Array | None:
    """By how much each of some classes reaches beyond the middles between its mean and the others', on average over
    these, in halves of the distance between the means.
    """
    if reading.offset is None:
        return None
    known, place = _among(reading.test[1], chosen, len(reading.class_counts))
    means = metrics.class_means(reading.test[0][known], place, len(chosen))
    shift = metrics.boundary_shift(reading.weight[chosen], reading.offset[chosen], means)
    relative = shift / (torch.cdist(means, means) / 2)
    return _array(relative.fill_diagonal_(torch.nan).nanmean(1))


def calibration(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> Array:
    """A row for each of `bins` bins of confidence, closed on the right: least confidence, samples, mean confidence,
    accuracy (NaN without samples).
    """
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    place = (torch.bucketize(confidence, edges.to(confidence.dtype)) - 1).clamp(0, bins - 1)
    number = torch.bincount(place, minlength=bins).double()
    sums = [torch.bincount(place, value.double(), minlength=bins) / number for value in (confidence, correct)]
    return torch.stack([edges[:-1], number, *sums], 1).numpy()


def histogram(logits: Tensor, target: Tensor, counts: Tensor, bins: int = HISTOGRAM_BINS) -> Histogram:
    """Densities of the logits z_ic of classes c of a group, where c is the sample's class and where it is another."""
    low, high = (float(end) for end in logits.aminmax())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    own = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, target[:, None], True)
    densities = {}
    for group, mask in groups_of(counts.numpy()).items():
        columns = torch.as_tensor(np.flatnonzero(mask))
        values, is_own = logits[:, columns], own[:, columns]
        for sign, part in (("positive", values[is_own]), ("negative", values[~is_own])):
            number = torch.histc(part, bins, float(edges[0]), float(edges[-1])).double().numpy()
            densities[group, sign] = number / max(number.sum(), 1) / (edges[1] - edges[0])
    return Histogram(edges, densities)


def _summary(reading: Reading, accuracy: Tensor, found: list[tuple[str, Array, Tensor]]) -> dict[str, float]:
    """Single numbers; of `found`, numbers by name with the class of each, the means by group."""
    target, counts = reading.test[1], reading.class_counts
    shares: dict[str, Any] = metrics.group_accuracy(accuracy, counts)
    summary = {f"accuracy_{group}": 100 * float(value) for group, value in shares.items()}
    correct = reading.prediction == target
    summary["errors"] = float((~correct).sum())
    summary["calibration_error"] = float(
        metrics.expected_calibration_error(reading.confidence, correct, CALIBRATION_BINS)
    )
    summary |= {f"balance_{name}": value for name, value in _balance(reading.weight).items()}
    for name, values, class_of in found:
        summary |= _by_group(name, values, _array(counts[class_of]))
    return summary


def _balance(weight: Tensor) -> dict[str, float]:
    """The balance metrics; lengths that differ by roundings alone, as those of a head of cosines, are alike: 0."""
    balance, length = metrics.balance_metrics(weight), torch.linalg.vector_norm(weight.double(), dim=1).mean()
    rounding = float((2 * torch.finfo(weight.dtype).eps * length) ** 2)
    return {**balance, "norm": 0.0} if balance["norm"] <= rounding else balance


def _by_group(name: str, values: Array, counts: Array) -> dict[str, float]:
    """The mean of what there is, over each group of classes with such counts and over all."""
    masks = {**groups_of(counts), "all": np.ones(len(counts), bool)}
    known = np.isfinite(values)
    return {
        f"{name}_{group}": float(values[mask & known].mean()) if (mask & known).any() else np.nan
        for group, mask in masks.items()
    }
