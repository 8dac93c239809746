"""The loss of logits c tanh(z / c), a group of tokens at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lt_kernels.core.targets import divisor_of
from lt_kernels.integrations.transformers.rows import summing
from lt_kernels.losses import Loss
from lt_kernels.ops import budget

COPIES = 16  # bytes for each logit of a group: it, its tanh, and their gradients


def capped(
    loss: Loss, cap: float, features: Tensor, linear_weight: Tensor, labels: Tensor, linear_bias: Tensor | None
) -> Tensor:
    """The loss of capped logits, reduced; the backward pass makes the logits of a group again.

    features [N, d], linear_weight [V, d], labels [N], linear_bias [V] or None.
    """
    table = loss.table(labels, linear_weight.shape[0])  # before the groups: it may be a prior of the whole batch
    groups = math.ceil(features.shape[0] * linear_weight.shape[0] * COPIES / budget.current_budget())

    def of_group(features: Tensor, linear_weight: Tensor, labels: Tensor) -> Tensor:
        logits = cap * torch.tanh(F.linear(features, linear_weight, linear_bias) / cap)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        with summing(loss):
            return loss.evaluate(logits, labels, table=table)

    parts = zip(features.chunk(max(groups, 1)), labels.chunk(max(groups, 1)), strict=True)
    total = torch.stack([checkpoint(of_group, x, linear_weight, y, use_reentrant=False) for x, y in parts]).sum()
    if loss.reduction == "sum":
        return total
    weight = loss.weight if loss.average == "weighted" else None
    return total / divisor_of(labels, weight, loss.ignore_index).to(total.dtype)
