"""pytorch-metric-learning: its classification losses as heads of this package, and its miners' weights of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.heads import CosineHead
from lt_kernels.integrations.libraries import library
from lt_kernels.losses import ArcFaceLoss, CosFaceLoss, CrossEntropyLoss, Loss, SphereFaceLoss

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS = ("none", "mean", "sum")


def _angular(loss: Any, reduction: Reduction) -> tuple[Loss, float]:
    return ArcFaceLoss(float(loss.margin), loss.scale, reduction=reduction), 1.0  # which keeps its degrees as radians


def _softmax(scale: float, reduction: Reduction) -> tuple[Loss, float]:
    return CrossEntropyLoss(reduction=reduction), scale


# By the name of their class: our loss, and what the head multiplies cosines by for one that takes logits.
_TAKEN: dict[str, Callable[[Any, Reduction], tuple[Loss, float]]] = {
    "ArcFaceLoss": _angular,
    "CosFaceLoss": lambda loss, how: (CosFaceLoss(loss.margin, loss.scale, reduction=how), 1.0),
    "NormalizedSoftmaxLoss": lambda loss, how: _softmax(1 / loss.temperature, how),
    "ProxyNCALoss": lambda loss, how: _softmax(2 * loss.softmax_scale, how),  # of squared distances, 2 - 2 cos
    "SphereFaceLoss": lambda loss, how: (SphereFaceLoss(loss.margin, loss.scale, reduction=how), 1.0),
    "SubCenterArcFaceLoss": _angular,
}


def from_pml(loss: Any, reduction: Reduction | None = None) -> CosineHead:
    """The head that computes what a classification loss of pytorch-metric-learning does, with a copy of its weights.

    head(embeddings, labels) is the loss, head(embeddings) the cosines, head.scaled(embeddings) its `get_logits`;
    those of ProxyNCALoss are distances, of which minus softmax_scale times them has the same softmax.

    loss: ArcFaceLoss, CosFaceLoss, NormalizedSoftmaxLoss, ProxyNCALoss, SphereFaceLoss or SubCenterArcFaceLoss, with
    the distance it has by itself. reduction: of the rows' losses; None is that of its reducer, mean or sum. Errors:
    TypeError naming the losses that are taken; ValueError naming a distance, reducer or regularizer that has no
    counterpart here; ImportError naming the library.
    """
    losses = library("pytorch_metric_learning.losses")
    name = type(loss).__name__
    if name not in _TAKEN or type(loss) is not getattr(losses, name):
        allowed = ", ".join(_TAKEN)
        raise TypeError(f"loss must be one of {allowed} of pytorch_metric_learning.losses, got {name}")
    _check_distance(name, loss.distance)
    for part in ("embedding_regularizer", "weight_regularizer"):
        if getattr(loss, part, None) is not None:
            raise ValueError(f"{part} must be None, as no loss here has one, got {type(getattr(loss, part)).__name__}")
    how: Reduction = _reduction(loss.reducer) if reduction is None else reduction
    checks.choice("reduction", how, REDUCTIONS)
    ours, scale = _TAKEN[name](loss, how)
    weight = loss.proxies if name == "ProxyNCALoss" else loss.W.t()  # [C K, d]
    centers = getattr(loss, "sub_centers", 1)
    head = CosineHead(weight.shape[1], weight.shape[0] // centers, ours, scale=scale, centers=centers)
    head.to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def _check_distance(name: str, distance: Any) -> None:
    """Raise unless the logits are cosines: of unit vectors, without another power."""
    nca = name == "ProxyNCALoss"
    kinds, power = (("LpDistance",), 2) if nca else (("CosineSimilarity", "DotProductSimilarity"), 1)
    alike = type(distance).__name__ in kinds and distance.p == 2 and distance.power == power
    if not (alike and distance.normalize_embeddings):
        raise ValueError(
            f"distance must be {kinds[0]}, of normalised embeddings with p=2 and power={power}, got "
            f"{type(distance).__name__} with normalize_embeddings={distance.normalize_embeddings}, p={distance.p} and "
            f"power={distance.power}"
        )


def _reduction(reducer: Any) -> Reduction:
    found: dict[str, Reduction] = {"MeanReducer": "mean", "SumReducer": "sum"}
    name = type(reducer).__name__
    if name not in found:
        raise ValueError(f"reducer must be MeanReducer or SumReducer, or reduction be given, got {name}")
    return found[name]


def miner_weights(
    indices_tuple: Sequence[Tensor] | None, labels: Tensor, dtype: torch.dtype | None = None, *, anchors: bool = False
) -> Tensor:
    """What a miner's tuples weigh each row by, [N] in [0, 1]: how often it occurs in them, over the most frequent one.

    `(weights * head(embeddings, labels)).mean()` with a head of `reduction="none"` is what pytorch-metric-learning's
    losses compute from them; None, or tuples without indices, weigh each row 1. dtype: None is torch's default.
    anchors: count a row's places as an anchor alone, as its ProxyNCALoss does.
    """
    utils, dtype = library("pytorch_metric_learning.utils.loss_and_miner_utils"), dtype or torch.get_default_dtype()
    return utils.convert_to_weights(indices_tuple, labels, dtype, using_ref=checks.flag("anchors", anchors))
