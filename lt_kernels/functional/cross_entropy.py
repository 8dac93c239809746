"""The public cross-entropies: of logits, of features and class weights, of their cosines (docs/math.md)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.accuracy import Accuracy
from lt_kernels.core.linear import Normalize
from lt_kernels.core.terms import Reduction
from lt_kernels.margins import Margin, MixedTarget
from lt_kernels.ops import prepare
from lt_kernels.ops.loss import evaluate, simple
from lt_kernels.ops.ranks import placements
from lt_kernels.ops.sources import Features, Logits, features


def offset_cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    weight: Tensor | None = None,
    *,
    offset: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float | Tensor = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    shift: int = 0,
    accuracy: Accuracy | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of logits + offset, a drop-in for `torch.nn.functional.cross_entropy`.

    With u = logits + offset and p = softmax(u): w_y (1 - p_y)^gamma (-log p_y), and with label smoothing e:
    (1 - e) times that + e / C sum_c w_c (-log p_c). A z-loss adds z_loss (log sum_c e^u_c)^2; all that is multiplied
    by the row's sample weight.

    Args:
        logits: [C], [N, C] or [N, C, d1, ...].
        target: class indices of the shape of `logits` without C; or probabilities of its shape; or a `MixedTarget`.
        weight: [C], a factor for each class.
        offset: [C]; the shape of `logits` (per row); or [C, C], whose row is the target's class. -inf: the class is not
            there (exactly no gradient, and smoothing goes to the others). Gradients flow to it. If N = C, give
            [N, 1, C] or [1, C, C].
        focal_gamma: at least 0 (Lin et al., 2017); 0 is plain cross-entropy.
        label_smoothing: in [0, 1], or a tensor [C] with one for each target class.
        z_loss: at least 0; keeps the log-sum-exp of a row near 0 (Chowdhery et al., 2022), whatever its class's weight.
        softcap: above 0; logits z become softcap tanh(z / softcap) before the offset is added (Bello et al., 2017). It
            is computed in float32, or float64 for logits of that dtype.
        sample_weight: a factor for each row, of the shape of the class indices, without a gradient. A row of weight 0
            is as one that is ignored, whatever its logits are.
        shift: logits at place t of the last dimension are judged against the target (and the sample weight) at
            t + shift; the last places have none, and are ignored. 1 for causal language models.
        accuracy: an `Accuracy`, which counts the rows that are right as the loss looks at them.
        ignore_index: rows with this target have no loss and exactly no gradient.
        reduction: "mean" divides by the sum of w_y times the sample weight over rows that count; with probabilities by
            the sum of the sample weights, which is N without them.

    Returns:
        A scalar, or with "none" the shape of the class indices; float32 under autocast, else the dtype of `logits`.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what it was and what it must be. On a GPU targets are
            not checked, which would wait for the device.

    DTensors: rows may be sharded (`Shard(0)`), and the result is that of all rows; tables are `Replicate()` or plain.

    Source: Ren et al. (2020), Menon et al. (2021) for the offset.
    """
    settings: dict[str, Any] = {"weight": weight, "offset": offset, "focal_gamma": focal_gamma, "z_loss": z_loss}
    settings |= {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "shift": shift}
    settings |= {"accuracy": accuracy, "softcap": softcap}
    if isinstance(logits, Tensor) and logits.ndim == 2 and sample_weight is None:
        found = simple(Logits(logits), target, reduction, **settings)
        if found is not None:
            return found
    settings["reduction"] = reduction
    rows = {"logits": logits, "target": target, "sample_weight": sample_weight}
    return placements.call(_of_logits, rows, {}, settings)


def _of_logits(
    logits: Tensor,
    target: Any,
    sample_weight: Tensor | None,
    settings: dict[str, Any],
    group: None = None,
    ranks: Any = None,
) -> Tensor:
    checks.floating("logits", logits)
    shape = tuple(logits.shape)
    if not shape or shape[min(1, len(shape) - 1)] == 0:
        raise ValueError(f"logits must be [C], [N, C] or [N, C, d1, ...] with C at least 1, got {list(shape)}")
    source = Logits(prepare.as_rows(logits), None, ranks)
    return evaluate(source, shape, target, sample_weight=sample_weight, **settings)


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
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    shift: int = 0,
    accuracy: Accuracy | None = None,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    group: Any = None,
) -> Tensor:
    """`offset_cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)` without ever holding all logits.

    A drop-in for `torch.nn.functional.linear_cross_entropy` with more options, and for features of any number of
    dimensions. Logits beyond `lt_kernels.memory_budget` (256 MiB) are made a slab at a time; weight gradients are
    summed in float32.

    Args:
        input: features [d], [N, d] or [..., d], such as hidden states [B, T, d].
        linear_weight: a row for each class [C, d]; [C, d1, ..., d] gives logits [N, C, d1, ...], which are held whole.
        target: class indices [...], probabilities [..., C], or a `MixedTarget`.
        linear_bias: [C].
        group: a process group over whose ranks the classes are sharded: `linear_weight` and `linear_bias` are this
            rank's rows, in the order of the ranks; all else is the same on every rank, `weight` and `offset` for all
            classes. Every rank gets the loss, or the error of any; the gradient of `input` is summed over the ranks.

    The rest, and what is returned and raised, as for `offset_cross_entropy`, with class indices of the shape of `input`
    without d; an offset for each row is [..., C]. DTensors may also shard the classes, by `linear_weight` (and
    `linear_bias`) with `Shard(0)`.
    """
    ignore_index = -100 if ignore_index is None else ignore_index
    settings: dict[str, Any] = {"weight": weight, "offset": offset, "focal_gamma": focal_gamma, "z_loss": z_loss}
    settings |= {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
    settings |= {"shift": shift, "accuracy": accuracy, "softcap": softcap}
    rows = {"input": input, "target": target, "sample_weight": sample_weight}
    weights = {"linear_weight": linear_weight, "linear_bias": linear_bias}
    return placements.call(_linear, rows, weights, settings, group)


def _linear(
    input: Tensor,
    target: Any,
    sample_weight: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    settings: dict[str, Any],
    group: Any = None,
    ranks: Any = None,
) -> Tensor:
    checks.floating("linear_weight", linear_weight)
    if linear_weight.ndim > 2 and group is None and ranks is None:
        return _many_positions(input, linear_weight, linear_bias, target, settings | {"sample_weight": sample_weight})
    checks.features(input, linear_weight, linear_bias, group is not None, form="...")
    rows = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
    source = features(rows, linear_weight, linear_bias, Normalize.NOTHING, None, group, ranks=ranks)
    return _of_features(source, tuple(input.shape[:-1]), target, sample_weight, settings)


def _of_features(
    source: Features, places: tuple[int, ...], target: Any, sample_weight: Tensor | None, settings: dict[str, Any]
) -> Tensor:
    """The loss of features whose rows stand at `places`, whose logits would be [..., C]."""
    if len(places) == 1 and source.ranks is None and sample_weight is None:
        found = simple(source, target, **settings)
        if found is not None:
            return found
    shape, last = (*places[:1], source.classes, *places[1:]), (*places, source.classes)
    if len(places) > 1:  # evaluate has the classes second, as `offset_cross_entropy`
        if prepare.is_probability(target):
            if tuple(target.shape) != last:
                raise ValueError(f"target must have shape {list(last)} or hold class indices, got {list(target.shape)}")
            target = target.movedim(-1, 1)
        offset = settings["offset"]
        if isinstance(offset, Tensor) and tuple(offset.shape) == last:
            settings = settings | {"offset": offset.movedim(-1, 1)}
    return evaluate(source, shape, target, sample_weight=sample_weight, **settings)


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
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    shift: int = 0,
    accuracy: Accuracy | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    group: Any = None,
) -> Tensor:
    """Cross-entropy of scale * cos(theta_ij) + offset_j, the target's cosine replaced by phi(cos; margin).

    theta_ij is the angle of feature i to class weight j. Neither normalised copies nor all cosines are ever held, and
    no arc cosine is taken. A row of norm 0 has cosines 0 and gradient 0.

    Args:
        input: features [d], [N, d] or [..., d].
        linear_weight: a row for each class [C, d].
        margin: `CosFace`, `ArcFace`, `SphereFace`, `LDAM` or `DBM`; None is the plain cosine softmax.
        scale: above 0; with `SphereFace` the logits are scale |x| cos.

    The rest, and what is returned and raised, as for `linear_cross_entropy`; MixUp takes a `MixedTarget`, since a dense
    target has no margin of its own.

    Source: Wang et al. (2018), Deng et al. (2019), Liu et al. (2017), Cao et al. (2019).
    """
    chosen: dict[str, Any] = {"margin": margin, "scale": scale, "weight": weight, "offset": offset}
    chosen |= {"focal_gamma": focal_gamma, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    chosen |= {"z_loss": z_loss, "shift": shift, "accuracy": accuracy, "reduction": reduction}
    rows = {"input": input, "target": target, "sample_weight": sample_weight}
    return placements.call(_cosine, rows, {"linear_weight": linear_weight}, chosen, group)


def _cosine(
    input: Tensor,
    target: Any,
    sample_weight: Tensor | None,
    linear_weight: Tensor,
    settings: dict[str, Any],
    group: Any = None,
    ranks: Any = None,
) -> Tensor:
    checks.features(input, linear_weight, None, group is not None, form="...")
    margin, settings["scale"] = settings["margin"], checks.number("scale", settings["scale"], above=0.0)
    if margin is not None and not isinstance(margin, Margin):
        raise TypeError(f"margin must be CosFace, ArcFace, SphereFace, LDAM, DBM or None, got {margin!r}")
    rows = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
    source = features(rows, linear_weight, None, Normalize.BOTH, margin, group, ranks=ranks)
    return _of_features(source, tuple(input.shape[:-1]), target, sample_weight, settings)
