"""Every picture of the analyses: its title, what one sees in it, and how it and its table are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lt_kernels.train.analysis import plots_classes as classes
from lt_kernels.train.analysis import plots_margins, tables
from lt_kernels.train.analysis import plots_offsets as offsets
from lt_kernels.train.analysis import plots_samples as samples
from lt_kernels.train.analysis.measures import RIDGE, SEPARATED, Analysis
from lt_kernels.train.analysis.plots_parts import gradient_parts

Analyses = Sequence[Analysis]
RECORDED, PARTS = ("offset", "estimated_offset"), ("attraction", "repulsion")


class Entry(NamedTuple):
    """One picture: its file's stem, what it is, what one sees, and how picture and table are made."""

    stem: str
    title: str
    caption: str
    draw: Callable[[Analyses], bytes]
    table: Callable[[Analyses], str]
    epochs: bool = False  # of what was recorded over the epochs
    shows: Callable[[Analysis], bool] = lambda analysis: True  # whether a run has what the picture shows


ENTRIES = (
    Entry(
        "accuracy",
        "Accuracy by class count",
        "How much of the accuracy of the frequent classes is left for the rare ones.",
        classes.accuracy,
        lambda runs: tables.by_class(runs, lambda a: {"accuracy": a.accuracy}),
    ),
    Entry(
        "false_positives",
        "Cumulative false positives",
        "A steep beginning: the frequent classes take the samples of others. The dotted line is that of errors spread "
        "evenly over the classes.",
        classes.false_positives,
        tables.false_positives,
    ),
    Entry(
        "similarity",
        "Similarity of class weights",
        "Red: two class weights point to the same side, so that the classes compete. The diagonal is left out.",
        classes.similarity,
        lambda runs: tables.matrix(runs, lambda a: a.similarity),
    ),
    Entry(
        "affinity",
        "Affinity of class weights",
        "Each row shares out a class's products with the others; 1 is an even share, as in a balanced classifier "
        "(Xie et al., 2023). Where the products of a row nearly cancel, its shares are large. "
        "Below each: the balance metrics.",
        classes.affinity,
        lambda runs: tables.matrix(runs, lambda a: a.affinity),
    ),
    Entry(
        "balance",
        "Balance of the class weights",
        "0 on a simplex of equal lengths and angles (Xie et al., 2023).",
        samples.balance,
        tables.summary,
    ),
    Entry(
        "offsets",
        "Offsets",
        "Half the product of class mean and class weight: a level curve favours no class (Kim, Hong and Kim). A bias "
        "that was trained is shown as what it subtracts; without one, the zero offset, nothing is subtracted.",
        offsets.offsets,
        tables.offsets,
    ),
    Entry(
        "boundaries",
        "Boundaries between the classes",
        "0: half-way between the class means, on average over the other classes. With plain cross-entropy the "
        "boundaries of frequent classes are beyond the middle (after Kim, Hong and Kim).",
        offsets.boundaries,
        tables.boundaries,
        shows=lambda analysis: analysis.boundaries is not None,
    ),
    Entry(
        "offsets_by_epoch",
        "Offsets over the epochs",
        "Recorded after each epoch.",
        lambda runs: classes.history(runs, RECORDED),
        lambda runs: tables.history(runs, RECORDED),
        epochs=True,
    ),
    Entry(
        "margins",
        "Margins",
        "What the loss makes of the target's logit at each angle: the farther below the cosine, the closer to its "
        "class's weight a feature must come. Hard: another class has a larger cosine (Son et al., 2025).",
        plots_margins.margins,
        tables.margins,
        shows=lambda analysis: analysis.margins is not None,
    ),
    Entry(
        "angles",
        "Angles of features",
        "Smaller angles to the weight: the class is recognised with a margin; to the mean: the class is compact. The "
        "mean of each group is in summary.csv.",
        samples.angles,
        tables.angles,
    ),
    Entry(
        "gradients",
        "Gradient components",
        "Attraction comes from the samples of the class, repulsion from all others; in balance they are alike for "
        "every class (Xie et al., 2023). On the training set, with the loss's own probabilities.",
        classes.components,
        tables.components,
    ),
    Entry(
        "gradients_by_epoch",
        "Gradient components over the epochs",
        "Recorded after each epoch, of the runs that have them.",
        lambda runs: classes.history(runs, PARTS),
        lambda runs: tables.history(runs, PARTS),
        epochs=True,
    ),
    Entry(
        "gradient_parts",
        "What moves the weight of the rarest class",
        "With plain cross-entropy the frequent classes push it away the most (Xie et al., 2023, figure 5). In the "
        "batches of the training, with the loss's own probabilities; only losses that are a softmax of linear logits.",
        gradient_parts,
        tables.parts,
        epochs=True,
        shows=lambda analysis: analysis.history is not None and analysis.history.parts is not None,
    ),
    Entry(
        "logits",
        "Distributions of logits",
        "The less the two overlap, the better the group's classes are told from others.",
        samples.logits,
        tables.logits,
    ),
    Entry(
        "logit_means",
        "Mean logits by class",
        "LADE's regulariser draws the logit of a class to log p_u(x|c) / p_u(x), where p_u has as many samples of each "
        "class: log C for the class's own samples if the classes do not overlap (Hong et al., 2021).",
        classes.logit_means,
        lambda runs: tables.by_class(runs, lambda a: {**a.logit_means, "log_classes": 0 * a.counts + a.log_classes}),
    ),
    Entry(
        "separability",
        "Separability of the classes",
        "Fisher's ratio of each class to each other, mean by group (Fisher, 1936), of the features as the network "
        "gives them; that of features of length 1 is in the table. Covariances have a ridge of "
        f"{RIDGE:g} of their mean variance, and of more than {SEPARATED} classes as many, drawn evenly, are compared.",
        samples.separability,
        tables.separability,
    ),
    Entry(
        "calibration",
        "Calibration",
        "On the dashed line confidence is accuracy; the expected calibration error is the mean distance from it "
        "(Guo et al., 2017; Zhong et al., 2021).",
        samples.calibration,
        tables.calibration,
    ),
)
