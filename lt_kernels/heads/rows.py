"""Rows of heads: class weights as parameters, whole or sharded over the ranks of a mesh, and weights of features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lt_kernels.core import checks, private
from lt_kernels.core.numbers import autocast
from lt_kernels.ops.ranks import placements

BLOCK = 2**20  # numbers drawn at a time; on a CPU any blocks of whole sixteens are what one draw gives


def empty(shape: tuple[int, ...], mesh: Any) -> nn.Parameter:
    """A parameter without values; with a mesh, a DTensor whose rows are sharded over it in DTensor's own chunks.

    Raises:
        ValueError: if `mesh` is not a mesh of one dimension that this process is in.
    """
    if mesh is None:
        return nn.Parameter(torch.empty(shape))
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

    if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1 or mesh.get_coordinate() is None:
        raise ValueError(f"mesh must be a DeviceMesh of one dimension that this rank is in, got {mesh!r}")
    rows, _ = private.part_of(shape, mesh, [Shard(0)])
    meta = torch.get_default_device().type == "meta"
    own = torch.empty(rows, device="meta" if meta else mesh.device_type)
    return nn.Parameter(placements.of_local(own, mesh, [Shard(0)], shape))


def check(features: Any, size: int, weight: Tensor, places: str = "...") -> None:
    """Raise unless features are floating [..., size], on the device and of the dtype of a head's class weights."""
    checks.floating("features", features, dtensor=True)
    if features.ndim == 0 or features.shape[-1] != size or (places == "N" and features.ndim != 2):
        raise ValueError(f"features must be [{places}, {size}], got {list(features.shape)}")
    if features.device != weight.device:
        raise ValueError(f"features must be on {weight.device} as the head's weight is, got {features.device}")
    if features.dtype != weight.dtype and not autocast(features):
        raise TypeError(f"features must be {weight.dtype} as the head's weight is, got {features.dtype}")


def flat_weights(sample_weight: Tensor, places: tuple[int, ...]) -> Tensor:
    """The weights of rows at these places, flat.

    Raises:
        ValueError, TypeError: for another shape, or for numbers that are not floating.
    """
    checks.floating("sample_weight", sample_weight, dtensor=True)
    if tuple(sample_weight.shape) != tuple(places):
        shown = list(sample_weight.shape)
        raise ValueError(f"sample_weight must have shape {list(places)}, one number a row, got {shown}")
    return sample_weight if sample_weight.ndim == 1 else sample_weight.reshape(-1)


def draw(values: Tensor, fill: Callable[[Tensor], Any]) -> None:
    """Fill values in place; this rank's part of a DTensor with what the whole would have.

    All numbers are drawn, block by block, and those of other ranks are dropped.
    """
    if not checks.is_dtensor(values):
        fill(values)
        return
    own: Tensor = placements.local(values.detach())
    if own.is_meta:
        return
    kept, first = _place(values)
    width = max(1, math.prod(values.shape[1:]))
    step = max(16, BLOCK // width // 16 * 16)
    starts = [*range(0, max(1, values.shape[0] // step) * step, step), values.shape[0]]
    for start, stop in itertools.pairwise(starts):
        block = own.new_empty((stop - start, *values.shape[1:]))
        fill(block)
        low, high = max(first, start), min(first + len(own), stop)
        if low < high:
            own[low - first : high - first] = block[low - start : high - start][kept]


def loaded(given: Tensor, own: Tensor) -> Tensor:
    """The rows of a whole checkpoint that belong to this rank of a parameter's mesh."""
    kept, first = _place(own)
    rows = given[first : first + len(placements.local(own))][kept]
    return placements.of_local(rows, own.device_mesh, list(own.placements), own.shape)  # type: ignore[attr-defined]


def _place(values: Any) -> tuple[tuple[slice, ...], int]:
    """Which columns of a DTensor are this rank's, as an index of its rows, and its first row."""
    shape, start = private.part_of(tuple(values.shape), values.device_mesh, values.placements)
    columns = zip(start[1:], shape[1:], strict=True)
    return (slice(None), *(slice(first, first + size) for first, size in columns)), start[0]
