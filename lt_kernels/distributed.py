"""Classes sharded over the ranks of a process group: the statistics of disjoint shards merge to those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.ranks import batches, exchange, shards
from lt_kernels.ops.ranks.exchange import RankError

__all__ = ["RankError", "clip_grad_norm_", "gather_batch", "gather_rows", "shard_bounds"]


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


def gather_batch(
    features: Tensor, target: Tensor | MixedTarget, group: Any = None
) -> tuple[Tensor, Tensor | MixedTarget]:
    """The features and targets of all ranks, in the order of the ranks, on every rank; ranks may have any numbers.

    For a head whose classes are sharded, under data parallelism. The gradient is summed over the ranks: where each has
    the same loss of the whole batch, that of this rank's features is `world` times the loss's, as the averaging of
    `DistributedDataParallel` and `fully_shard` expects. In a group of one rank both are returned as they are.

    Args:
        features: this rank's rows [N, ...], N at least 0.
        target: class indices [N, ...], probabilities [N, C], or a `MixedTarget` of indices [N, ...], whose `lam` (a
            number, or one for each row) becomes one for each of all rows.
        group: a process group; None is that of all ranks.

    Raises:
        TypeError, ValueError: naming the argument.
        RankError: if another rank had an error, or dtypes, the shape of a row, the kind of target, or whether features
            require a gradient differ between ranks.
    """
    group = shards.given(group)
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_gather_batch)(features, target, group)
    return _gather_batch(features, target, group)


def _gather_batch(features: Tensor, target: Any, group: Any) -> tuple[Tensor, Any]:
    with exchange.told(group, features):
        named = [("features", _batch(features)), *_targets(target, features)]
        if dist.get_world_size(group) == 1:
            return features, target
        kind = "MixedTarget" if isinstance(target, MixedTarget) else "probabilities or indices"
        _, (found, *targets) = batches.gathered(group, named, [("the kind of target", kind)])
    return found, MixedTarget(*targets) if isinstance(target, MixedTarget) else targets[0]


def _batch(features: Any) -> Tensor:
    """Rows of features that are a plain tensor."""
    if checks.floating("features", features).ndim < 2:
        raise ValueError(f"features must be [N, ...] with two dimensions at least, got {list(features.shape)}")
    if hasattr(features, "placements"):
        raise TypeError("features must be this rank's rows as a plain tensor, got a DTensor: give its to_local()")
    return features


def _targets(target: Any, features: Tensor) -> list[tuple[str, Tensor]]:
    """The names and rows that a target consists of."""
    rows = features.shape[0]
    if isinstance(target, MixedTarget):
        two = [_indices("first", target.first, features), _indices("second", target.second, features)]
        return [*two, ("lam", _shares(target.lam, features))]
    if not (isinstance(target, Tensor) and target.is_floating_point()):
        return [_indices("target", target, features)]
    checks.same_device("target", checks.floating("target", target), features)
    if target.ndim < 2 or target.shape[0] != rows:
        raise ValueError(f"target must be [{rows}, C] where it holds probabilities, got {list(target.shape)}")
    if target.requires_grad:
        raise ValueError("target must not require a gradient here, got one that does")
    return [("target", target)]


def _shares(lam: float | Tensor, features: Tensor) -> Tensor:
    """The share of the first target for each of the rows of features, from one of each or one of all."""
    rows, kind = features.shape[0], torch.float64 if features.dtype == torch.float64 else torch.float32
    if not isinstance(lam, Tensor):
        return torch.full((rows,), lam, dtype=kind, device=features.device)
    if lam.ndim and lam.shape[0] != rows:
        raise ValueError(f"lam must have one number for each of the {rows} rows, got {lam.shape[0]}")
    return checks.same_device("lam", lam.expand(rows), features)


def _indices(name: str, value: Any, features: Tensor) -> tuple[str, Tensor]:
    """Class indices, any shape for each of the rows of features."""
    shape = (features.shape[0], *(value.shape[1:] if isinstance(value, Tensor) else ()))
    return name, checks.indices(name, value, shape, features)


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
