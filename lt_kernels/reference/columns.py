"""Column-wise log-sum-exp, target logits, and their gradient: the definition (docs/math.md, section 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type


def check_target(target: Tensor, classes: int) -> None:
    """Raise for a class index outside [0, classes); only on a CPU, because on a GPU it would synchronise."""
    if target.device.type != "cpu":
        return
    wrong = (target < 0) | (target >= classes)
    if bool(wrong.any()):
        raise IndexError(f"target holds {int(target[wrong][0])}; allowed are 0 to {classes - 1}")


def _values(logits: Tensor, row_offset: Tensor | None) -> Tensor:
    z = logits.to(accumulate_type(logits.dtype))
    return z if row_offset is None else z + row_offset[:, None]


def columns_forward(logits: Tensor, target: Tensor, row_offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """(logsumexp_i (z_ic + row_offset_i) [C], z_iy [N]) of logits [N, C] and class indices [N]."""
    check_target(target, logits.shape[1])
    own = logits.gather(1, target[:, None])[:, 0]
    return _values(logits, row_offset).logsumexp(0), own.to(accumulate_type(logits.dtype))


def columns_backward(
    logits: Tensor, target: Tensor, row_offset: Tensor | None, lse: Tensor, d_lse: Tensor, d_own: Tensor
) -> Tensor:
    """The gradient of `columns_forward` for the logits [N, C], in their dtype."""
    check_target(target, logits.shape[1])
    chance = (_values(logits, row_offset) - torch.where(lse == -torch.inf, 0.0, lse)).exp()
    return (d_lse * chance).scatter_add(1, target[:, None], d_own[:, None]).to(logits.dtype)
