"""Class counts to offsets, margins, weights and smoothing: computed on the host in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.angles import angle
from lt_kernels.core.labels import labels_of

__all__ = [
    "class_balanced_weight",
    "class_counts_of",
    "dbm_margin",
    "label_aware_smoothing",
    "ldam_margin",
    "log_prior",
]


def log_prior(class_counts: Any, tau: float = 1.0) -> Tensor:
    """tau log(n_c / sum n), the offset of balanced softmax (Ren et al., 2020), logit adjustment (Menon et al., 2021).

    Args:
        class_counts: training samples of each class [C]; a class with 0 gets -inf, that is, it is not there.
        tau: strength, at least 0; 0 is no adjustment but for the classes that are not there.

    Returns:
        float64 [C].
    """
    count = checks.counts(class_counts)
    adjusted = checks.number("tau", tau, 0.0) * (count.log() - count.sum().log())
    return adjusted.masked_fill(count == 0, -math.inf)


def class_balanced_weight(class_counts: Any, beta: float = 0.9999, normalize: bool = True) -> Tensor:
    """(1 - beta) / (1 - beta^n_c), scaled to sum to C if `normalize` (Cui et al., 2019); beta = 0 gives ones.

    Args:
        class_counts: training samples of each class [C], all above 0.
        beta: in [0, 1).

    Returns:
        float64 [C]; 1 - beta^n is computed as -expm1(n log beta), which keeps its digits for beta near 1.
    """
    count = checks.counts(class_counts, positive=True)
    beta = checks.number("beta", beta, 0.0, math.nextafter(1.0, 0.0))
    checks.flag("normalize", normalize)
    weight = torch.ones_like(count) if beta == 0 else (1 - beta) / -torch.expm1(count * math.log(beta))
    return weight * (count.numel() / weight.sum()) if normalize else weight


def ldam_margin(class_counts: Any, max_margin: float = 0.5) -> Tensor:
    """max_margin (n_min / n_c)^(1/4), float64 [C]: the rarest class gets max_margin (Cao et al., 2019)."""
    count = checks.counts(class_counts, positive=True)
    return checks.number("max_margin", max_margin, 0.0) * (count.min() / count) ** 0.25


def dbm_margin(class_counts: Any, max_margin: float = 0.1, tau: float = 1.0) -> Tensor:
    """max_margin (n_min / n_c)^tau in radians, float64 [C] (Difficulty-aware Balancing Margin, 2025)."""
    count = checks.counts(class_counts, positive=True)
    margin = angle("max_margin", max_margin)
    return margin * (count.min() / count) ** checks.number("tau", tau, 0.0)


def label_aware_smoothing(
    class_counts: Any,
    head: float,
    tail: float,
    shape: Literal["concave", "linear", "convex", "exp"] = "concave",
    power: float = 1.0,
) -> Tensor:
    """Label smoothing that grows with the class count (Zhong et al., 2021), float64 [C].

    With r = (n - n_min) / (n_max - n_min): concave tail + (head - tail) sin(pi r / 2), linear tail + (head - tail) r,
    convex head + (head - tail) sin(3 pi / 2 + pi r / 2), exp tail + (head - tail) r^power. Equal counts give head.

    Args:
        head, tail: the smoothing of the most and of the least frequent class, in [0, 1].
    """
    count = checks.counts(class_counts)
    head, tail = checks.number("head", head, 0.0, 1.0), checks.number("tail", tail, 0.0, 1.0)
    checks.choice("shape", shape, ("concave", "linear", "convex", "exp"))
    power = checks.number("power", power, above=0.0)
    spread = count.max() - count.min()
    r = torch.where(spread == 0, 1.0, (count - count.min()) / spread)
    if shape == "convex":
        return head + (head - tail) * torch.sin(1.5 * math.pi + math.pi * r / 2)
    rise = {"concave": torch.sin(math.pi * r / 2), "linear": r, "exp": r**power}[shape]
    return tail + (head - tail) * rise


def spread_smoothing(smoothing: Tensor, spread: Literal["all", "others"] = "all") -> Tensor:
    """The smoothing e [C] as one that is shared out over all classes, e / C each.

    With "others", e / (C - 1) for each class but the target, the same distribution comes from e C / (C - 1) over all.

    Raises:
        ValueError: if that is above 1, or C is 1.
    """
    if checks.choice("spread", spread, ("all", "others")) == "all":
        return smoothing
    classes = smoothing.numel()
    if classes == 1 or (checks.known() and float(smoothing.max()) > (classes - 1) / classes):
        raise ValueError(f"head and tail must be at most (C - 1)/C with spread='others', got up to {smoothing.max()}")
    return smoothing * (classes / (classes - 1))


def batch_count(
    target: Tensor, num_classes: int, ignore_index: int = -100, sample_weight: Tensor | None = None
) -> Tensor:
    """N_c, how often each class occurs in a batch, float64 [C]; no wait for the device.

    Of class probabilities [C], [N, C] or [N, C, d1, ...], N_c is the sum of those of class c. A row counts as often as
    its `sample_weight` says, of the shape of class indices.
    """
    if isinstance(target, Tensor) and target.is_floating_point():
        if target.ndim == 0 or target.shape[min(1, target.ndim - 1)] != num_classes:
            shown = list(target.shape)
            raise ValueError(f"target must have {num_classes} classes where it holds probabilities, got shape {shown}")
        share = target.detach().to(torch.float64)
        rows = share[None] if share.ndim == 1 else share.movedim(1, -1).reshape(-1, num_classes)
        times = _times(sample_weight, target.shape[:1] + target.shape[2:] if target.ndim > 1 else ())
        return (rows if times is None else times[:, None] * rows).sum(0)
    flat = checks.indices("target", target, getattr(target, "shape", ()), target).reshape(-1)
    counted, times = (flat != ignore_index).to(torch.float64), _times(sample_weight, target.shape)
    counted = counted if times is None else torch.where(flat != ignore_index, times, 0.0)
    count = torch.zeros(num_classes, dtype=torch.float64, device=target.device)
    return count.scatter_add(0, flat.clamp(0, num_classes - 1), counted)


def _times(sample_weight: Tensor | None, places: Sequence[int]) -> Tensor | None:
    """How often each row counts, float64 [N]."""
    if sample_weight is None:
        return None
    if checks.floating("sample_weight", sample_weight).shape != tuple(places):
        shown = list(sample_weight.shape)
        raise ValueError(f"sample_weight must have shape {list(places)}, one number a row, got {shown}")
    return sample_weight.detach().reshape(-1).to(torch.float64)


def class_counts_of(target: Any, num_classes: int, *, ignore_index: int | None = None) -> Tensor:
    """How often each class occurs among labels: int64 [num_classes], on the device of a tensor.

    Args:
        target: class indices of any shape (a tensor, an array, a sequence, a Series), or what has them: a dataset,
            counted by its `targets`, `labels`, second tensor or column "label" where there is one, else by reading each
            item, (input, label) or a dictionary, once; a DataLoader, counted by its dataset.
        num_classes: C; a class that does not occur has the count 0.
        ignore_index: labels that are not counted.

    Raises:
        TypeError, ValueError: if a label is no integer or outside 0..C - 1; if all labels are rows [C] of 0 and 1, that
            is, one-hot or multi-hot, which as indices would count classes 0 and 1 alone; or if a loader's sampler draws
            some samples more often than others, so that the counts of its dataset are not those of an epoch.
    """
    num_classes = checks.whole("num_classes", num_classes)
    total, rows = None, num_classes > 1
    for part in labels_of(target):
        rows = rows and part.ndim == 2 and part.shape[1] == num_classes
        kept = part.reshape(-1) if ignore_index is None else part[part != checks.ignored("ignore_index", ignore_index)]
        if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= num_classes):
            raise ValueError(f"target must be in 0 to {num_classes - 1}, got {int(kept.min())} to {int(kept.max())}")
        count = torch.bincount(kept, minlength=num_classes)
        total = count if total is None else total + count
    if total is None:
        return torch.zeros(num_classes, dtype=torch.int64)
    if rows and int(total[:2].sum()) == int(total.sum()) > 0:
        raise ValueError(
            f"target must hold class indices, got rows of 0 and 1 with one entry for each of {num_classes} classes: of "
            "one-hot rows give target.argmax(1), of multi-hot rows the counts are target.sum(0), and entries that are "
            "the classes 0 and 1 are given as target.flatten()"
        )
    return total
