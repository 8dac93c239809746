"""Class weights sharded over ranks: the error of one rank on all, and clipping by the norm of the whole."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.ranks import batches, exchange, placements, shards
from lt_kernels.ops.ranks.exchange import RankError

__all__ = ["RankError", "clip_grad_norm_", "gather_batch"]


@overload
def gather_batch(
    features: Tensor, target: Tensor | MixedTarget, group: Any = None, *, sample_weight: None = None
) -> tuple[Tensor, Tensor | MixedTarget]: ...
@overload
def gather_batch(
    features: Tensor, target: Tensor | MixedTarget, group: Any = None, *, sample_weight: Tensor
) -> tuple[Tensor, Tensor | MixedTarget, Tensor]: ...
def gather_batch(
    features: Tensor, target: Tensor | MixedTarget, group: Any = None, *, sample_weight: Tensor | None = None
) -> tuple[Any, ...]:
    """The features and targets of all ranks, in the order of the ranks, on every rank; ranks may have any numbers.

    For a head whose classes are sharded, under data parallelism. The gradient is summed over the ranks: where each has
    the same loss of the whole batch, that of this rank's features is `world` times the loss's, as the averaging of
    `DistributedDataParallel` and `fully_shard` expects. In a group of one rank all are returned as they are.

    Args:
        features: this rank's rows [N, ...], N at least 0.
        target: class indices [N, ...], probabilities [N, C], or a `MixedTarget` of indices [N, ...], whose `lam` (a
            number, or one for each row) becomes one for each of all rows.
        group: a process group; None is that of all ranks.
        sample_weight: a factor for each of this rank's rows [N, ...], for the head; on all ranks or on none.

    Returns:
        Features and target of all ranks, and where `sample_weight` is given that of all ranks as a third.

    Raises:
        TypeError, ValueError: naming the argument.
        RankError: if another rank had an error, or dtypes, the shape of a row, the kind of target, whether features
            require a gradient, or whether there is a sample_weight differ between ranks.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_gather_batch)(features, target, group, sample_weight)
    return _gather_batch(features, target, group, sample_weight)


def _gather_batch(features: Tensor, target: Any, group: Any, by_row: Tensor | None) -> tuple[Any, ...]:
    group, given = shards.given(group), () if by_row is None else (by_row,)
    with exchange.told(group, features):
        named = [("features", _batch(features)), *_targets(target, features)]
        named += [("sample_weight", _weights(each, features)) for each in given]
        if dist.get_world_size(group) == 1:
            return features, target, *given
        kind = "MixedTarget" if isinstance(target, MixedTarget) else "probabilities or indices"
        said = [("the kind of target", kind), ("whether there is a sample_weight", bool(given))]
        _, (found, *rest) = batches.gathered(group, named, said)
    own = 3 if isinstance(target, MixedTarget) else 1
    return found, MixedTarget(*rest[:own]) if own == 3 else rest[0], *rest[own:]


def _batch(features: Any) -> Tensor:
    """Rows of features that are a plain tensor."""
    if checks.floating("features", features, dtensor=True).ndim < 2:
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


def _weights(value: Any, features: Tensor) -> Tensor:
    """Factors of any shape for each of the rows of features, without a gradient."""
    checks.same_device("sample_weight", checks.floating("sample_weight", value), features)
    if value.ndim < 1 or value.shape[0] != features.shape[0]:
        raise ValueError(
            f"sample_weight must have shape [{features.shape[0]}, ...], one number a row, got {list(value.shape)}"
        )
    if value.requires_grad:
        raise ValueError("sample_weight must not require a gradient here, got one that does")
    return value


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


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` where some parameters are DTensors, as those of a sharded head are.

    The norm is that of the whole, and every rank clips by the same factor. Torch's own takes DTensors of one mesh
    alone, and neither plain tensors beside them nor those of another mesh.

    Args:
        parameters: DTensors of any meshes, and plain tensors that every rank of these meshes holds alike, with the same
            gradients.
        max_norm: above 0; inf only measures the norm, and clips nothing. norm_type: above 0, or inf.
        error_if_nonfinite: raise if the norm is NaN or infinite, which waits for a device.

    Returns:
        The norm before clipping, the same on every rank; float64.

    Raises:
        TypeError, ValueError: naming the argument, on the rank whose argument it is.
        RankError: for what another rank raised, or was given otherwise; on a CPU, if plain tensors' gradients have
            another norm on another rank.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    by_mesh: dict[Any, list[Tensor]] = {None: []}
    for one in parameters:
        by_mesh.setdefault(getattr(one, "device_mesh", None), []).append(one)
    call = functools.partial(_clipped, by_mesh, max_norm, norm_type, error_if_nonfinite)
    for mesh in filter(None, by_mesh):
        for dim in range(mesh.ndim):
            call = functools.partial(placements.together, mesh.get_group(dim), parameters[0], call)
    return call()


def _clipped(by_mesh: dict[Any, list[Tensor]], max_norm: Any, norm_type: Any, error_if_nonfinite: bool) -> Tensor:
    """The norm of all gradients, by which they are clipped."""
    max_norm, norm_type = _above_zero("max_norm", max_norm), _above_zero("norm_type", norm_type)
    said = [exchange.check("max_norm", max_norm), exchange.check("norm_type", norm_type)]
    plain = by_mesh[None]
    device = next((some[0].device for some in by_mesh.values() if some), torch.device("cpu"))
    with torch.no_grad():
        alike, norms = _norm(_grads(plain), norm_type, device), []
        for mesh, some in by_mesh.items():
            if mesh is not None:
                alike, *sharded = _over(mesh, alike, _grads(some), norm_type, said)
                norms += sharded
        total = torch.linalg.vector_norm(torch.stack([alike, *norms]), norm_type)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RankError(f"the norm of the gradients must be finite, got {total.item()}")
        for some in by_mesh.values() if max_norm < math.inf else ():
            torch.nn.utils.clip_grads_with_norm_(some, max_norm, total)
    return total


def _above_zero(name: str, value: Any) -> float:
    """A number above 0, or infinity."""
    if isinstance(value, (int, float)) and not value > 0:
        raise ValueError(f"{name} must be a number above 0, or inf, got {value!r}")
    return math.inf if value == math.inf else checks.number(name, value, above=0.0)


def _grads(parameters: list[Tensor]) -> list[Tensor]:
    return [one.grad for one in parameters if one.grad is not None]


def _norm(grads: list[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The norm of plain gradients, those without numbers left out."""
    found = torch.nn.utils.get_total_norm([one for one in grads if one.numel()], norm_type)
    return found.to(device, torch.float64)


def _over(mesh: Any, alike: Tensor, grads: list[Any], norm_type: float, said: list[Any]) -> list[Tensor]:
    """The norm that the ranks of a mesh have alike, and the whole norms of gradients that are sharded over it.

    Torch's own norm of DTensors has other collectives on ranks whose part is empty, in some versions.
    """
    kinds: dict[tuple[Any, ...], list[Tensor]] = {}
    for grad in grads:
        summed = placements.summed(grad)
        kinds.setdefault(summed.placements, []).append(summed.to_local())
    found = torch.stack([alike, *(_norm(some, norm_type, alike.device) for some in kinds.values())])
    said = [*said, exchange.check("the number of gradients of DTensors", len(grads))]
    for dim in range(mesh.ndim):
        _, every = exchange.meet(mesh.get_group(dim), "clip_grad_norm_", found.device, said, payload=found)
        assert every is not None  # there was a payload
        if found.device.type == "cpu" and not torch.allclose(every[:, 0], every[:1, 0], 1e-6, 0.0, equal_nan=True):
            raise RankError(
                "gradients of parameters that are not sharded must be the same on every rank, but their norms are "
                f"{every[:, 0].tolist()}: average them first"
            )
        sharded = torch.tensor([False, *(not kind[dim].is_replicate() for kind in kinds)], device=found.device)
        found = torch.where(sharded, torch.linalg.vector_norm(every, norm_type, 0), every[0])
    return list(found.unbind())
