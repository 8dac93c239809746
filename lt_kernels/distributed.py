"""Classes sharded over the ranks of a process group: the statistics of disjoint shards merge to those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.ops.ranks import exchange, shards
from lt_kernels.ops.ranks.exchange import RankError

__all__ = ["RankError", "clip_grad_norm_", "gather_rows", "shard_bounds"]


def together(group: Any, like: Any, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Call function(*args, **kwargs), and raise its errors on every rank; it stays outside of compiled graphs.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    shards.checked(group)
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_together)(group, like, function, *args, **kwargs)
    return _together(group, like, function, *args, **kwargs)


def _together(group: Any, like: Any, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    with exchange.told(group, like):
        return function(*args, **kwargs)


def gather_rows(weight_shard: Tensor, group: Any) -> Tensor:
    """All ranks' rows [C, ...] in the order of the ranks, on every rank, without a gradient: for a checkpoint.

    Args:
        weight_shard: this rank's rows [c, d], or its entries [c] of a bias; ranks may have different numbers of rows.
        group: the process group over whose ranks they are sharded.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    own = weight_shard.detach().contiguous()
    found = shards.shard(own, group, "gather_rows")
    most = max(found.sizes)
    padded = own.new_zeros((most, *own.shape[1:]))  # a collective wants the same shape of every rank
    padded[: own.shape[0]] = own
    parts = [torch.empty_like(padded) for _ in found.sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, found.sizes, strict=True)])


def shard_bounds(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """The classes [start, stop) of a rank, in the order of the ranks; shares differ by at most one class.

    Raises:
        ValueError: if there are fewer classes than ranks, or `rank` is none of them.
    """
    if num_classes < world_size:
        raise ValueError(f"num_classes must be at least 1 for each of the {world_size} ranks, got {num_classes}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
    return rank * num_classes // world_size, (rank + 1) * num_classes // world_size


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    group: Any,
    *,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` where some parameters are class weights sharded over the ranks of `group`.

    The norm is that of the whole: torch's own takes each rank's rows for all there are, clips by another factor on each
    rank, and lets the other parameters drift apart. Class weights and biases are known from their loss with this group.

    Args:
        parameters: those that are sharded, and those that every rank holds alike, with the same gradients.
        max_norm: above 0. norm_type: above 0, or inf.
        error_if_nonfinite: raise if the norm is NaN or infinite, which waits for a device.

    Returns:
        The norm before clipping, the same on every rank; float64.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
        RankError: on a CPU, if the gradients that every rank should hold alike have another norm on another rank.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    device = parameters[0].device if parameters else torch.device("cpu")
    with torch.no_grad(), exchange.told(shards.checked(group), parameters[0] if parameters else None):
        checks.number("max_norm", max_norm, above=0.0)
        apart: tuple[list[Tensor], list[Tensor]] = ([], [])
        for one in parameters:
            if one.grad is not None:
                apart[shards.is_shard(one, group)].append(one.grad)
        each = torch.stack([torch.nn.utils.get_total_norm(some, norm_type).to(device, torch.float64) for some in apart])
        _, norms = exchange.meet(group, "clip_grad_norm_", device, payload=each)
        assert norms is not None  # there was a payload
        alike, rows = norms.unbind(1)
        if device.type == "cpu" and not torch.allclose(alike, alike[:1], rtol=1e-6, atol=0.0, equal_nan=True):
            raise RankError(
                "gradients of parameters that are not sharded must be the same on every rank, but their norms are "
                f"{alike.tolist()}: average them first, and call the loss of sharded ones with this group"
            )
        total = torch.linalg.vector_norm(torch.cat((alike[:1], rows)), norm_type)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RankError(f"the norm of the gradients must be finite, got {total.item()}")
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total
