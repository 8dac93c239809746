"""The dtypes of the arithmetic, and small calculations that all kernels share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

SPLITMIX_STEP = -7046029254386353131  # what splitmix64 adds to its state for each number, as a signed one


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_type(input: Tensor) -> torch.dtype:
    """The logits' dtype: the features', but float32 for float16: before the norms divide them they may pass 65,504.

    (And a CPU multiplies float16 at a third of the speed.)
    """
    return torch.float32 if input.dtype == torch.float16 else input.dtype


def autocast(like: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor; never for "meta", which torch does not ask for."""
    return not like.is_meta and torch.is_autocast_enabled(like.device.type)


def as_they_are(device: torch.device) -> AbstractContextManager[None]:
    """A context in which matrix products keep the dtypes of their arguments, whatever autocast asks for."""
    if not torch.amp.is_autocast_available(device.type):  # "meta", where launches are recorded and not run
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def finite(top: Tensor) -> Tensor:
    """The largest u of rows, 0 where they have none: what may be subtracted from a u of -inf."""
    return torch.where(top == -torch.inf, 0.0, top)


def inverse_norm(rows: Tensor) -> Tensor:
    """1 / |row|; 0 for a row shorter than 1e-12, which has no direction; NaN for one whose norm overflows."""
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=accumulate_type(rows.dtype))
    return torch.where(norm <= 1e-12, 0.0, norm / norm / norm)  # infinity / infinity is NaN


def add_rows(total: Tensor, index: Tensor, part: Tensor) -> None:
    """Add rows to those of `total` (ours) in a fixed order: on a GPU index_add_ has none, index_put_ sorts."""
    if total.device.type == "cpu":
        total.index_add_(0, index, part)
    else:
        total.index_put_((index.long(),), part, accumulate=True)


def cap_(logits: Tensor, softcap: float) -> Tensor:
    """softcap tanh(logits / softcap), in their place if they have the dtype of the arithmetic; 0 leaves them."""
    if not softcap:
        return logits
    return logits.to(accumulate_type(logits.dtype)).div_(softcap).tanh_().mul_(softcap)


def cap_slope_(capped: Tensor, softcap: float) -> Tensor:
    """The derivative of the cap in the place of its results; 1 for NaN, so that rows with gradient 0 keep it."""
    return capped.div_(softcap).square_().neg_().add_(1.0).nan_to_num_(1.0)


def mixed(words: Tensor) -> Tensor:
    """The mixing function of splitmix64 (Steele, Lea and Flood, 2014) on int64: one to one, and even in all bits."""
    words = (words ^ _shifted(words, 30)) * -4658895280553007687
    words = (words ^ _shifted(words, 27)) * -7723592293110705685
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, places: int) -> Tensor:
    """A shift to the right that brings in zeros, as of unsigned numbers."""
    return (words >> places) & ((1 << (64 - places)) - 1)
