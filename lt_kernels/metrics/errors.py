"""Where a classifier errs, and how sure it is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.metrics.inputs import flat, labels, plane, shares, sizes, sums, within


def _false_positives(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    prediction, target = flat(prediction, target)
    within("target", target, num_classes)
    return sizes(within("prediction", prediction, num_classes)[prediction != target], num_classes)


def false_positives(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """FP_c = #{i : prediction_i = c, target_i != c}: float64 [C], whose sum is the number of errors.

    prediction, target: class indices of one shape, in 0..C - 1. Errors: TypeError or ValueError naming the argument.
    """
    return _false_positives(prediction, target, checks.whole("num_classes", num_classes)).double()


def cumulative_false_positives(prediction: Tensor, target: Tensor, class_counts: Any) -> Tensor:
    """CFP(k) = sum of the false positives of the k classes with the most training samples: float64 [C].

    prediction, target: class indices of one shape, in 0..C - 1; class_counts: [C], training samples of each class.
    Entry k - 1 is CFP(k), not normalised; classes with equal counts stand in the order of their indices; the last entry
    is the number of errors. Errors: TypeError or ValueError naming the argument.
    """
    count = checks.counts(class_counts)
    wrong = _false_positives(prediction, target, len(count))
    order = count.to(wrong.device).argsort(descending=True, stable=True)
    return wrong[order].cumsum(0).double()


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """ECE = sum_b (n_b / N) |accuracy_b - confidence_b| over bins ((b - 1)/B, b/B] of equal width.

    confidence: [N], the probability of the predicted class; correct: [N], whether that is the target (bool, or 0 and
    1); bins: B. A confidence on an edge, as its dtype rounds it, belongs to the bin below; one of exactly 0 is in no
    bin but counts in N. NaN for N = 0. Errors: TypeError or ValueError naming the argument (Guo et al., 2017).
    """
    # torchmetrics' multiclass_calibration_error closes its bins on the left: a confidence on an edge (one half, say) is
    # in another bin, and one of exactly 1 has a bin of its own. It also computes in float32.
    bins, confidence = checks.whole("bins", bins), shares("confidence", confidence)
    if confidence.ndim != 1:
        raise ValueError(f"confidence must have shape [N], got {list(confidence.shape)}")
    if not isinstance(correct, Tensor) or correct.shape != confidence.shape:
        given = list(correct.shape) if isinstance(correct, Tensor) else type(correct).__name__
        raise ValueError(f"correct must be a tensor of shape {list(confidence.shape)} as confidence is, got {given}")
    right = checks.same_device("correct", correct, confidence).detach().double()
    if not bool(((right == 0) | (right == 1)).all()):
        raise ValueError(f"correct must hold 0 and 1, or be bool, got {float(right[(right != 0) & (right != 1)][0])}")
    return float(gaps(confidence, right, bins).abs().sum() / len(confidence)) if len(confidence) else math.nan


def gaps(confidence: Tensor, right: Tensor, bins: int) -> Tensor:
    """The sum of accuracy minus confidence over each bin, float64 [B], which may be added up over parts of a data set.

    confidence: [N]; right: float64 [N], 0 or 1.
    """
    edges = (torch.arange(bins + 1, dtype=torch.float64, device=confidence.device) / bins).to(confidence.dtype)
    bin_of = torch.bucketize(confidence.contiguous(), edges)  # 0 for a confidence of 0
    return sums(right - confidence.double(), bin_of, bins + 1)[1:]


def mean_iou(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None
) -> dict[str, Tensor | float]:
    """Intersection over union of each class, TP / (TP + FP + FN), its mean, and the accuracy of the pixels.

    prediction, target: class indices of one shape, in 0..C - 1, except where the target is `ignore_index`: such pixels
    do not count. Returns "per_class": float64 [C]; "mean_iou"; "mean_pixel_accuracy", the mean of TP / (TP + FN);
    "pixel_accuracy", the share of all pixels. A class neither in the target nor predicted, and a class that is
    `ignore_index`, has NaN and does not count; the mean of accuracies is over the classes in the target. A mean over
    nothing is NaN. Errors: TypeError or ValueError naming the argument.
    """
    num_classes = checks.whole("num_classes", num_classes)
    found = overlaps(pixel_counts(prediction, target, num_classes, ignore_index))
    if ignore_index is not None and 0 <= ignore_index < num_classes:
        found["per_class"][ignore_index] = torch.nan
        found["mean_iou"] = float(found["per_class"].nanmean())
    return found


def pixel_counts(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """What `overlaps` needs, which may be added up over parts of a data set: int64 [3, C], of each class the pixels
    that are predicted, those in the target, and those that are both.
    """
    # Three counts a class: torchmetrics' confusion matrix holds C^2 numbers, and in deterministic mode C^2 a pixel.
    prediction, target = flat(prediction, target)
    if ignore_index is not None:
        kept = target != checks.whole("ignore_index", ignore_index, low=-(2**63))
        prediction, target = prediction[kept], target[kept]
    within("target", target, num_classes)
    said, own = sizes(within("prediction", prediction, num_classes), num_classes), sizes(target, num_classes)
    return torch.stack([said, own, sizes(target[prediction == target], num_classes)])


def overlaps(counts: Tensor) -> dict[str, Any]:
    """The values of `mean_iou` from the counts of `pixel_counts`."""
    said, own, both = counts
    overlap = both.double() / (own + said - both)
    return {
        "per_class": overlap,
        "mean_iou": float(overlap.nanmean()),
        "mean_pixel_accuracy": float((both.double() / own).nanmean()),
        "pixel_accuracy": float(both.sum().double() / own.sum()),
    }


def logit_statistics(logits: Tensor, target: Tensor) -> dict[str, Tensor | float]:
    """The mean logit of each class over its own samples, and over those of the others.

    logits: [N, C]; target: class indices [N]. Returns "positive": mean of z_ic over y_i = c, float64 [C], NaN for a
    class without samples; "negative": over y_i != c, NaN for a class that has all samples; "log_classes": log C, the
    logit log p(x|c) / p(x) of a sample of class c where C classes are alike in number and do not overlap (Hong et al.,
    2021). Errors: TypeError or ValueError naming the argument.
    """
    values = plane("logits", logits, "[N, C]")
    classes = values.shape[1]
    target = labels(target, values, classes)
    own, members = values.gather(1, target[:, None])[:, 0].double(), sizes(target, classes)
    others = values.scatter(1, target[:, None], 0.0).sum(0, dtype=torch.float64)  # a difference of sums would cancel
    return {
        "positive": sums(own, target, classes) / members,
        "negative": others / (len(values) - members),
        "log_classes": math.log(classes),
    }
