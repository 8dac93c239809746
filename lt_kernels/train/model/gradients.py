"""The parts of the gradient of a head's class weights, with the probabilities and slopes of the loss that trains it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels import metrics
from lt_kernels.data.base import IGNORED
from lt_kernels.heads import LinearHead
from lt_kernels.losses import EstimatedOffsetLoss
from lt_kernels.losses.base import Loss
from lt_kernels.margins import MixedTarget


def why_no_parts(head: Any) -> str | None:
    """Why the loss is not a plain softmax of linear logits and an offset, or None where it is."""
    loss = getattr(head, "loss", None)
    if not isinstance(head, LinearHead) or not isinstance(loss, Loss):
        return "its logits are not linear in the features"
    if loss.margin is not None:
        return "its loss has a margin"
    if loss.focal_gamma != 0:
        return "its loss is focal"
    if loss.weight is not None:
        return "its loss weighs the classes"
    if loss.class_smoothing is not None or loss.label_smoothing != 0:
        return "its loss smooths the targets"
    if loss.z_loss != 0 or loss.softcap is not None:
        return "its loss caps the logits" if loss.softcap is not None else "its loss has a z-loss"
    return None


def why_no_components(head: Any) -> str | None:
    """Why there are no components over the training set, or None where there are."""
    changes = getattr(getattr(head, "loss", None), "counts", "global") == "batch"
    return why_no_parts(head) or ("its offset changes with the batch" if changes else None)


def _trained_with(head: Any, features: Tensor, target: Any) -> tuple[Tensor, Tensor | None]:
    """The probabilities [N, C] that the loss trains with, and what its logits measure features from, [C, d]."""
    loss, bias = head.loss, head.bias
    logits = F.linear(features, head.weight.float(), None if bias is None else bias.float()).double()
    if isinstance(loss, EstimatedOffsetLoss) and loss.use == "subtract":  # w.x - c.w / 2 = w.(x - c / 2)
        return (logits + loss.offsets(head.weight)).softmax(1), loss.center_loss.centers / 2
    offset = loss.table(target, len(head.weight))
    return (logits if offset is None else logits + offset).softmax(1), None


@torch.no_grad()
def components_of(head: Any, features: Tensor, target: Tensor) -> dict[str, Tensor] | str:
    """`metrics.gradient_components` with the probabilities that the loss trains with, or why there are none."""
    reason = why_no_components(head)
    if reason is not None:
        return reason
    features, target = features.float(), target.to(features.device)
    probability, origin = _trained_with(head, features, target)
    components = metrics.gradient_components(probability, features, target, origin=origin)
    return {name: value.cpu() for name, value in components.items()}


@torch.no_grad()
def parts_of_batch(head: Any, features: Tensor, target: Any, classes: Tensor) -> Tensor | None:
    """`metrics.gradient_parts` of some classes' weights, [C, R], as a batch of training moves them; None where the loss
    is not a plain softmax. A sample with two targets counts for each with its share; a pixel without a class does not
    count.
    """
    if why_no_parts(head) is not None:
        return None
    with torch.autocast(features.device.type, enabled=False):
        features = features.detach().float().flatten(0, -2)
        if isinstance(target, MixedTarget):
            probability, origin = _trained_with(head, features, target)
            share = torch.as_tensor(target.lam, dtype=features.dtype, device=features.device).reshape(-1, 1)
            features = torch.cat([share * features, (1 - share) * features])
            probability, target = probability.repeat(2, 1), torch.cat([target.first, target.second])
        else:
            known = target.flatten() != IGNORED
            features, target = features[known], target.flatten()[known]
            probability, origin = _trained_with(head, features, target)
        return metrics.gradient_parts(probability, features, target, classes, origin=origin)
