"""A rank's share of the classes of a head: how it draws its rows, saves them, and refuses those of another share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.distributed import shard_bounds
from lt_kernels.ops.ranks.shards import checked

BLOCK = 2**20  # numbers drawn at a time; on a CPU any blocks of whole sixteens are what one draw gives


class Share:
    """The classes [start, stop) of `classes` that a rank of a group has.

    Copies share the group; a pickle leaves it out, since it belongs to its process.
    """

    def __init__(self, group: Any, rank: int, world: int, bounds: tuple[int, int], classes: int) -> None:
        self.group, self.rank, self.world, self.bounds, self.classes = group, rank, world, bounds, classes

    def __deepcopy__(self, memo: dict[int, Any]) -> Share:
        return Share(self.group, self.rank, self.world, self.bounds, self.classes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Share, (None, self.rank, self.world, self.bounds, self.classes)

    def __str__(self) -> str:
        return f"classes {self.bounds[0]} to {self.bounds[1] - 1} of {self.classes} (rank {self.rank} of {self.world})"

    def given(self) -> Any:
        """The group.

        Raises:
            ValueError: if it was left behind in another process.
        """
        if self.group is None:
            raise ValueError(
                f"group must be given again with head.group = ..., got none: this head, with {self}, comes from a "
                "pickle, which leaves the process group out"
            )
        return self.group

    def again(self, group: Any) -> None:
        """Take a group that has the same rank and size.

        Raises:
            ValueError: if this rank would have other classes in it.
        """
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        if (rank, world) != (self.rank, self.world):
            raise ValueError(f"group must fit this head, with {self}, got rank {rank} of {world}")
        self.group = group

    def draw(self, values: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Fill this rank's rows with those that `fill` draws for all: block by block, the others are dropped."""
        if values.is_meta:
            return
        first, last = self.bounds
        width = max(1, values[0].numel())
        step = max(16, BLOCK // width // 16 * 16)
        starts = [*range(0, max(1, self.classes // step) * step, step), self.classes]
        with torch.no_grad():
            for start, stop in itertools.pairwise(starts):
                block = values.new_empty((stop - start, *values.shape[1:]))
                fill(block)
                low, high = max(first, start), min(last, stop)
                if low < high:
                    values[low - first : high - first] = block[low - start : high - start]

    def saved(self) -> list[int]:
        """What a checkpoint says of its rows: the first class, the one after the last, and how many there are."""
        return [*self.bounds, self.classes]


def share_of(num_classes: int, group: Any) -> Share:
    """This rank's share of the classes, which differ in size by at most one.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to, or has more ranks than classes.
    """
    rank, world = dist.get_rank(checked(group)), dist.get_world_size(group)
    return Share(group, rank, world, shard_bounds(num_classes, rank, world), num_classes)


def misfit(own: list[int], saved: Any, rows: int, here: str) -> str | None:
    """The reason why a checkpoint's rows do not belong to a head; None if they may."""
    advice = "gather the rows with lt_kernels.distributed.gather_rows and cut them with shard_bounds"
    if saved is not None and list(saved) != own:
        return f"weight holds classes {saved[0]} to {saved[1] - 1} of {saved[2]}, this head has {here}: {advice}"
    if rows != own[1] - own[0]:
        return f"weight holds {rows} rows, this head has {here}: {advice}"
    return None
