"""The public functions: drop-in losses whose rows are three numbers (docs/math.md)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.linear import Normalize
from lt_kernels.core.numbers import autocast
from lt_kernels.core.terms import Reduction
from lt_kernels.margins import DBM, LDAM, ArcFace, CosFace, Margin, MixedTarget, SphereFace
from lt_kernels.ops import gram, prepare
from lt_kernels.ops.loss import evaluate, simple
from lt_kernels.ops.ranks import placements
from lt_kernels.ops.ranks.columns import lade_of_ranks
from lt_kernels.ops.ranks.dealing import ranks_of
from lt_kernels.ops.ranks.gram import repulsion
from lt_kernels.ops.sources import Logits, features

__all__ = [
    "DBM",
    "LDAM",
    "ArcFace",
    "CosFace",
    "MixedTarget",
    "SphereFace",
    "cosine_margin_cross_entropy",
    "lade_regularizer",
    "linear_cross_entropy",
    "logit_weight_repulsion",
    "offset_cross_entropy",
]


def offset_cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    weight: Tensor | None = None,
    *,
    offset: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float | Tensor = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of logits + offset, a drop-in for `torch.nn.functional.cross_entropy`.

    With u = logits + offset and p = softmax(u): w_y (1 - p_y)^gamma (-log p_y), and with label smoothing e:
    (1 - e) times that + e / C sum_c w_c (-log p_c).

    Args:
        logits: [C], [N, C] or [N, C, d1, ...].
        target: class indices of the shape of `logits` without C; or probabilities of its shape; or a `MixedTarget`.
        weight: [C], a factor for each class.
        offset: [C]; the shape of `logits` (per row); or [C, C], whose row is the target's class. -inf: the class is not
            there (exactly no gradient, and smoothing goes to the others). Gradients flow to it. If N = C, give
            [N, 1, C] or [1, C, C].
        focal_gamma: at least 0 (Lin et al., 2017); 0 is plain cross-entropy.
        label_smoothing: in [0, 1], or a tensor [C] with one for each target class.
        ignore_index: rows with this target have no loss and exactly no gradient.
        reduction: "mean" divides by the sum of w_y over rows that count, by N for probabilities.

    Returns:
        A scalar, or with "none" the shape of the class indices; float32 under autocast, else the dtype of `logits`.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what it was and what it must be. On a GPU targets are
            not checked, which would wait for the device.

    DTensors: rows may be sharded (`Shard(0)`), and the result is that of all rows; tables are `Replicate()` or plain.

    Source: Ren et al. (2020), Menon et al. (2021) for the offset.
    """
    settings: dict[str, Any] = {"weight": weight, "offset": offset, "focal_gamma": focal_gamma}
    settings |= {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    if isinstance(logits, Tensor) and logits.ndim == 2:
        found = simple(Logits(logits), target, reduction, **settings)
        if found is not None:
            return found
    settings["reduction"] = reduction
    return placements.call(_of_logits, {"logits": logits, "target": target}, {}, settings)


def _of_logits(logits: Tensor, target: Any, settings: dict[str, Any], group: None = None, ranks: Any = None) -> Tensor:
    checks.floating("logits", logits)
    shape = tuple(logits.shape)
    if not shape or shape[min(1, len(shape) - 1)] == 0:
        raise ValueError(f"logits must be [C], [N, C] or [N, C, d1, ...] with C at least 1, got {list(shape)}")
    return evaluate(Logits(prepare.as_rows(logits), None, ranks), shape, target, **settings)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | MixedTarget,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    offset: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float | Tensor = 0.0,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    group: Any = None,
) -> Tensor:
    """`offset_cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)` without ever holding all logits.

    A drop-in for `torch.nn.functional.linear_cross_entropy`, plus offset, focal_gamma and group. Logits beyond
    `lt_kernels.memory_budget` (256 MiB) are made a slab at a time; weight gradients are summed in float32.

    Args:
        input: features [N, d] or [d].
        linear_weight: a row for each class [C, d]; [C, d1, ..., d] gives logits [N, C, d1, ...], which are held whole.
        target: class indices [N], probabilities [N, C], or a `MixedTarget`.
        linear_bias: [C].
        group: a process group over whose ranks the classes are sharded: `linear_weight` and `linear_bias` are this
            rank's rows, in the order of the ranks; all else is the same on every rank, `weight` and `offset` for all
            classes. Every rank gets the loss, or the error of any; the gradient of `input` is summed over the ranks.

    The rest, and what is returned and raised, as for `offset_cross_entropy`; DTensors may also shard the classes, by
    `linear_weight` (and `linear_bias`) with `Shard(0)`.
    """
    ignore_index = -100 if ignore_index is None else ignore_index
    settings: dict[str, Any] = {"weight": weight, "offset": offset, "focal_gamma": focal_gamma}
    settings |= {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
    weights = {"linear_weight": linear_weight, "linear_bias": linear_bias}
    return placements.call(_linear, {"input": input, "target": target}, weights, settings, group)


def _linear(
    input: Tensor,
    target: Any,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    settings: dict[str, Any],
    group: Any = None,
    ranks: Any = None,
) -> Tensor:
    checks.floating("linear_weight", linear_weight)
    if linear_weight.ndim > 2 and group is None and ranks is None:
        return _many_positions(input, linear_weight, linear_bias, target, settings)
    checks.features(input, linear_weight, linear_bias, group is not None)
    source = features(prepare.as_rows(input), linear_weight, linear_bias, Normalize.NOTHING, None, group, ranks=ranks)
    shape = (source.classes,) if input.ndim == 1 else (input.shape[0], source.classes)
    if isinstance(source, Logits):
        logits = source.values if input.ndim == 2 else source.values[0]
        return offset_cross_entropy(logits, target, **settings)
    found = None if input.ndim == 1 or ranks is not None else simple(source, target, **settings)
    return evaluate(source, shape, target, **settings) if found is None else found


def _many_positions(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Any,
    settings: dict[str, Any],
) -> Tensor:
    """Class weights [C, d1, ..., d]: a softmax over C at each position."""
    outer = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    checks.features(input, linear_weight.flatten(0, -2), bias)
    logits = F.linear(torch.atleast_2d(input), linear_weight.flatten(0, -2), bias).reshape(-1, *outer)
    return offset_cross_entropy(logits, target, **settings)


def cosine_margin_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | MixedTarget,
    *,
    margin: Margin | None = None,
    scale: float = 30.0,
    weight: Tensor | None = None,
    offset: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float | Tensor = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    group: Any = None,
) -> Tensor:
    """Cross-entropy of scale * cos(theta_ij) + offset_j, the target's cosine replaced by phi(cos; margin).

    theta_ij is the angle of feature i to class weight j. Neither normalised copies nor all cosines are ever held, and
    no arc cosine is taken. A row of norm 0 has cosines 0 and gradient 0.

    Args:
        input: features [N, d] or [d].
        linear_weight: a row for each class [C, d].
        margin: `CosFace`, `ArcFace`, `SphereFace`, `LDAM` or `DBM`; None is the plain cosine softmax.
        scale: above 0; with `SphereFace` the logits are scale |x| cos.

    The rest, and what is returned and raised, as for `linear_cross_entropy`; MixUp takes a `MixedTarget`, since a dense
    target has no margin of its own.

    Source: Wang et al. (2018), Deng et al. (2019), Liu et al. (2017), Cao et al. (2019).
    """
    chosen: dict[str, Any] = {"margin": margin, "scale": scale, "weight": weight, "offset": offset}
    chosen |= {"focal_gamma": focal_gamma, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    rows, weights = {"input": input, "target": target}, {"linear_weight": linear_weight}
    return placements.call(_cosine, rows, weights, chosen | {"reduction": reduction}, group)


def _cosine(
    input: Tensor, target: Any, linear_weight: Tensor, settings: dict[str, Any], group: Any = None, ranks: Any = None
) -> Tensor:
    checks.features(input, linear_weight, None, group is not None)
    margin, settings["scale"] = settings["margin"], checks.number("scale", settings["scale"], above=0.0)
    if margin is not None and not isinstance(margin, Margin):
        raise TypeError(f"margin must be CosFace, ArcFace, SphereFace, LDAM, DBM or None, got {margin!r}")
    source = features(prepare.as_rows(input), linear_weight, None, Normalize.BOTH, margin, group, ranks=ranks)
    shape = (source.classes,) if input.ndim == 1 else (input.shape[0], source.classes)
    found = None if input.ndim == 1 or ranks is not None else simple(source, target, **settings)
    return evaluate(source, shape, target, **settings) if found is None else found


def logit_weight_repulsion(
    linear_weight: Tensor,
    *,
    threshold: float = 0.4,
    project: bool | Literal["raw"] = True,
    reduction: Reduction = "sum",
    group: Any = None,
) -> Tensor:
    """R_i = log sum_j exp(1[cos_ij > threshold] s_ij) - 1[threshold < 1] s_ii, s_ij the cosine of w_i and w_j.

    Class weights that are closer than the threshold push each other apart. The C x C cosines are never held.

    Args:
        linear_weight: a row for each class [C, d]; a row of norm 0 has cosine 0 with all others. A DTensor must be
            `Replicate()`; reduced, the result is a plain number for it too.
        threshold: a cosine; 1 or more switches the repulsion off (R_i = log C, gradient 0).
        project: differentiate through the normalisation, which makes the gradient tangent to each w_i; False holds the
            norms constant. "raw" has products s_ij = w_i.w_j, active where the cosine is above the threshold, as in the
            other forms; the diagonal is then s_ii = |w_i|^2, active if the threshold is below 1, and has a gradient.
            |w_i|^2 must be finite in the dtype of the arithmetic.
        reduction: "sum" (as published), "mean", or "none" for [C].
        group: as for `linear_cross_entropy`; a DTensor's mesh says it. Each rank computes its rows against all, and has
            their gradient; "none" is for these rows.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    given = (linear_weight, threshold, project, reduction)
    if group is not None or checks.is_dtensor(linear_weight):
        found = repulsion(group, *given)
        return found if autocast(linear_weight) else found.to(linear_weight.dtype)
    found = gram.repulsion(linear_weight, *gram.checked(*given))
    return reduced(found, reduction, linear_weight)


def reduced(value: Tensor, reduction: Reduction, like: Tensor) -> Tensor:
    """R [C] reduced; float32 under autocast, else in the dtype of the class weights."""
    value = value if reduction == "none" else value.sum() if reduction == "sum" else value.mean()
    return value if autocast(like) else value.to(like.dtype)


def lade_regularizer(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    *,
    lam: float = 0.1,
    importance: Literal["class", "sample"] = "class",
    classes: Literal["all", "present"] = "all",
    batch_group: Any = None,
) -> Tensor:
    """sum_c p_c (-A_c + B_c + lam B_c^2), LADE's regulariser (Hong et al., 2021).

    A_c is the mean logit of class c over its own rows (0 if it has none), B_c = logsumexp_i (z_ic + log v_ic) - log N
    with importance weights v, p the class prior.

    Args:
        logits: [N, C], N at least 1.
        target: class indices [N].
        class_counts: training samples of each class [C].
        lam: at least 0.
        importance: v_ic = (1/C) / p of the logit's class c ("class", the published code) or of the row's own class
            ("sample", the published formula).
        classes: sum over "all" classes (the code) or those "present" in the batch (the formula).
        batch_group: the ranks over which the batch is dealt: a process group, "all" for all ranks of torch.distributed
            if it is initialised, or None for this process alone. N is then the rows of all, and a rank may have none;
            the gradient of a rank's logits is that of the value times the number of ranks (docs/distributed.md).

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError, IndexError: naming the argument.
    """
    lam = checks.number("lam", lam, 0.0)
    checks.choice("importance", importance, ("class", "sample"))
    checks.choice("classes", classes, ("all", "present"))
    rows = (logits, target, checks.counts(class_counts), lam, importance, classes)
    return lade_of_ranks(ranks_of(batch_group), *rows)
