"""The loss of logits c tanh(z / c) from features and class weights."""

from __future__ import annotations

from torch import Tensor

from lt_kernels.core.targets import divisor_of
from lt_kernels.functional import linear_cross_entropy
from lt_kernels.losses import Loss

TAKEN = ("weight", "offset", "focal_gamma", "label_smoothing", "z_loss", "ignore_index")


def capped(
    loss: Loss, cap: float, features: Tensor, linear_weight: Tensor, labels: Tensor, linear_bias: Tensor | None
) -> Tensor:
    """The loss, reduced: `linear_cross_entropy` with the settings of `loss`, which has no margin.

    features [N, d], linear_weight [V, d], labels [N], linear_bias [V] or None.
    """
    settings = loss.settings(loss.table(labels, linear_weight.shape[0]))
    taken = {name: settings[name] for name in TAKEN}
    rows = (features, linear_weight, labels)
    if loss.reduction == "mean" and loss.average == "weighted":
        return linear_cross_entropy(*rows, linear_bias=linear_bias, softcap=cap, **taken)
    total = linear_cross_entropy(*rows, linear_bias=linear_bias, softcap=cap, reduction="sum", **taken)
    return total if loss.reduction == "sum" else total / divisor_of(labels, None, loss.ignore_index)
