"""Every picture of the analyses: its title, what one sees in it, and how it and its table are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lt_kernels.train.analysis import plots_classes as classes
from lt_kernels.train.analysis import plots_margins, tables
from lt_kernels.train.analysis import plots_offsets as offsets
from lt_kernels.train.analysis import plots_samples as samples
from lt_kernels.train.analysis.measures import RIDGE, SEPARATED, Analysis
from lt_kernels.train.analysis.plots_parts import gradient_parts
from lt_kernels.train.output.figures import mean_of_known

Analyses = Sequence[Analysis]
RECORDED, PARTS = ("offset", "estimated_offset"), ("attraction", "repulsion")


class Entry(NamedTuple):
    """One picture: its file's stem, what it is, what one sees, how picture and table are made, and of what number its
    words say which run has the highest and the lowest.
    """

    stem: str
    title: str
    caption: str
    draw: Callable[[Analyses], Figure]
    table: Callable[[Analyses], str]
    what: str
    number: Callable[[Analysis], float]
    epochs: bool = False  # of what was recorded over the epochs
    shows: Callable[[Analysis], bool] = lambda analysis: True  # whether a run has what the picture shows


def _of(name: str, factor: float = 1.0) -> Callable[[Analysis], float]:
    """A number of the summary."""
    return lambda analysis: factor * analysis.summary.get(name, math.nan)


def _spread(values: np.ndarray | None) -> float:
    """The standard deviation over the classes that have a value."""
    return math.nan if values is None or not np.isfinite(values).any() else float(np.nanstd(values))


def _last(name: str, analysis: Analysis) -> float:
    """The spread over the classes of what was recorded last."""
    return math.nan if analysis.history is None else _spread(analysis.history.values[name][-1])


def _repulsion(analysis: Analysis) -> float:
    """The mean share of repulsion in the components of the classes."""
    if isinstance(analysis.components, str):
        return math.nan
    total = analysis.components["attraction"].mean() + analysis.components["repulsion"].mean()
    return float(analysis.components["repulsion"].mean() / total) if total else math.nan


def _hardest(analysis: Analysis) -> float:
    """How far a loss's logit of the target is below the cosine, at most."""
    if (curves := analysis.margins) is None:
        return math.nan
    return float((np.cos(np.radians(curves.angle)) - curves.hard).max())


def _own_part(analysis: Analysis) -> float:
    """The share of its own samples in what moves the weight of the rarest class in the last epoch."""
    if analysis.history is None or (parts := analysis.history.parts) is None:
        return math.nan
    last = parts.values[-1, :, 0]
    return float(last[parts.classes[0]] / last.sum()) if last.sum() else math.nan


def _apart(analysis: Analysis) -> float:
    """How far the mean logit of a class is higher for its own samples, on average over the classes."""
    means = analysis.logit_means
    return mean_of_known(means["positive"] - means["negative"])


ENTRIES = (
    Entry(
        "accuracy",
        "Accuracy by class count",
        "How much of the accuracy of the frequent classes is left for the rare ones.",
        classes.accuracy,
        lambda runs: tables.by_class(runs, lambda a: {"accuracy": a.accuracy}),
        "mean class accuracy in percent",
        lambda a: mean_of_known(a.accuracy),
    ),
    Entry(
        "false_positives",
        "Cumulative false positives",
        "A steep beginning: the frequent classes take the samples of others. The dotted line is that of errors spread "
        "evenly over the classes.",
        classes.false_positives,
        tables.false_positives,
        "number of errors",
        lambda a: float(a.cumulative[-1]),
    ),
    Entry(
        "similarity",
        "Similarity of class weights",
        "Red: two class weights point to the same side, so that the classes compete. The diagonal is left out.",
        classes.similarity,
        lambda runs: tables.matrix(runs, lambda a: a.similarity),
        "mean cosine between class weights",
        lambda a: mean_of_known(a.similarity.values),
    ),
    Entry(
        "affinity",
        "Affinity of class weights",
        "Each row shares out a class's products with the others; 1 is an even share, as in a balanced classifier "
        "(Xie et al., 2023). Where the products of a row nearly cancel, its shares are large. "
        "Below each: the balance metrics.",
        classes.affinity,
        lambda runs: tables.matrix(runs, lambda a: a.affinity),
        "variance of the products of class weights",
        _of("balance_dot"),
    ),
    Entry(
        "balance",
        "Balance of the class weights",
        "0 on a simplex of equal lengths and angles (Xie et al., 2023).",
        samples.balance,
        tables.summary,
        "variance of the cosines of class weights",
        _of("balance_angle"),
    ),
    Entry(
        "offsets",
        "Offsets",
        "Half the product of class mean and class weight: a level curve favours no class (Kim, Hong and Kim). A bias "
        "that was trained is shown as what it subtracts; without one, the zero offset, nothing is subtracted.",
        offsets.offsets,
        tables.offsets,
        "spread of the offsets over the classes",
        lambda a: _spread(a.offsets["test features"]),
    ),
    Entry(
        "boundaries",
        "Boundaries between the classes",
        "0: half-way between the class means, on average over the other classes. With plain cross-entropy the "
        "boundaries of frequent classes are beyond the middle (after Kim, Hong and Kim).",
        offsets.boundaries,
        tables.boundaries,
        "spread of the shifts over the classes",
        lambda a: _spread(a.boundaries),
        shows=lambda analysis: analysis.boundaries is not None,
    ),
    Entry(
        "offsets_by_epoch",
        "Offsets over the epochs",
        "Recorded after each epoch.",
        lambda runs: classes.history(runs, RECORDED),
        lambda runs: tables.history(runs, RECORDED),
        "spread of the offsets over the classes at the end",
        lambda a: _last("offset", a),
        epochs=True,
    ),
    Entry(
        "margins",
        "Margins",
        "What the loss makes of the target's logit at each angle: the farther below the cosine, the closer to its "
        "class's weight a feature must come. Hard: another class has a larger cosine (Son et al., 2025).",
        plots_margins.margins,
        tables.margins,
        "largest distance of the target's logit below the cosine",
        _hardest,
        shows=lambda analysis: analysis.margins is not None,
    ),
    Entry(
        "angles",
        "Angles of features",
        "Smaller angles to the weight: the class is recognised with a margin; to the mean: the class is compact. The "
        "mean of each group is in summary.csv.",
        samples.angles,
        tables.angles,
        "mean angle to the class weight in degrees",
        lambda a: mean_of_known(a.angles["weight"]),
    ),
    Entry(
        "gradients",
        "Gradient components",
        "Attraction comes from the samples of the class, repulsion from all others; in balance they are alike for "
        "every class (Xie et al., 2023). On the training set, with the loss's own probabilities.",
        classes.components,
        tables.components,
        "share of repulsion in the gradient",
        _repulsion,
    ),
    Entry(
        "gradients_by_epoch",
        "Gradient components over the epochs",
        "Recorded after each epoch, of the runs that have them.",
        lambda runs: classes.history(runs, PARTS),
        lambda runs: tables.history(runs, PARTS),
        "spread of the repulsion over the classes at the end",
        lambda a: _last("repulsion", a),
        epochs=True,
    ),
    Entry(
        "gradient_parts",
        "What moves the weight of the rarest class",
        "With plain cross-entropy the frequent classes push it away the most (Xie et al., 2023, figure 5). In the "
        "batches of the training, with the loss's own probabilities; only losses that are a softmax of linear logits.",
        gradient_parts,
        tables.parts,
        "share of its own samples in what moves the rarest class's weight",
        _own_part,
        epochs=True,
        shows=lambda analysis: analysis.history is not None and analysis.history.parts is not None,
    ),
    Entry(
        "logits",
        "Distributions of logits",
        "The less the two overlap, the better the group's classes are told from others.",
        samples.logits,
        tables.logits,
        "distance of a class's mean logits for its own and other samples",
        _apart,
    ),
    Entry(
        "logit_means",
        "Mean logits by class",
        "LADE's regulariser draws the logit of a class to log p_u(x|c) / p_u(x), where p_u has as many samples of each "
        "class: log C for the class's own samples if the classes do not overlap (Hong et al., 2021).",
        classes.logit_means,
        lambda runs: tables.by_class(runs, lambda a: {**a.logit_means, "log_classes": 0 * a.counts + a.log_classes}),
        "distance of a class's mean logits for its own and other samples",
        _apart,
    ),
    Entry(
        "separability",
        "Separability of the classes",
        "Fisher's ratio of each class to each other, mean by group (Fisher, 1936), of the features as the network "
        "gives them; that of features of length 1 is in the table. Covariances have a ridge of "
        f"{RIDGE:g} of their mean variance, and of more than {SEPARATED} classes as many, drawn evenly, are compared.",
        samples.separability,
        tables.separability,
        "mean separability of the classes",
        _of("separability_all"),
    ),
    Entry(
        "calibration",
        "Calibration",
        "On the dashed line confidence is accuracy; the expected calibration error is the mean distance from it "
        "(Guo et al., 2017; Zhong et al., 2021).",
        samples.calibration,
        tables.calibration,
        "expected calibration error in percent",
        _of("calibration_error", 100),
    ),
)
