"""Sub-centres: several class weights for each class, of which the nearest to a feature counts (Deng et al., 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.terms import Phi
from lt_kernels.heads.rows import flat_weights
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.budget import current_budget
from lt_kernels.ops.directions import unit


def evaluate(
    head: Any, features: Tensor, target: Tensor | MixedTarget | None, sample_weight: Tensor | None = None
) -> Tensor:
    """The loss of a `CosineHead` with sub-centres, or without a target each class's largest cosine [..., C]."""
    if target is None:
        rows = features.reshape(-1, features.shape[-1])
        return nearest(rows, head.weight, head.centers).reshape(*features.shape[:-1], head.num_classes)
    rows, target = head.flat(features, target)
    places = features.shape[:-1]
    loss, found = head.loss, nearest(rows, head.weight, head.centers)
    if loss.input_kind != "cosine":
        found = found * head.scale
    more: dict[str, Any] = {}
    if loss.margin is not None and loss.margin.kind == Phi.SPHERE:  # the features' norms are part of its logits
        more["norms"] = torch.linalg.vector_norm(rows, dim=1, dtype=accumulate_type(rows.dtype))
    if sample_weight is not None:
        more["sample_weight"] = flat_weights(sample_weight, places)
    value = loss(found, target, **more)
    return value.reshape(places) if loss.reduction == "none" else value


def nearest(features: Tensor, weight: Tensor, centers: int) -> Tensor:
    """The largest of each class's cosines, [N, C] of features [N, d] and class weights [C K, d].

    By blocks of classes, whose cosines [N, B K] are within the memory budget; backward keeps of them what was chosen.
    """
    features = unit(features)
    row = max(1, len(features) * centers * features.element_size())
    block = max(1, current_budget() // row) * centers
    parts = [F.linear(features, unit(part)).unflatten(1, (-1, centers)).max(2).values for part in weight.split(block)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
