"""Over which ranks the batch of a loss is dealt, whose statistics are those of all rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from lt_kernels.ops.ranks import shards


def ranks_of(batch_group: Any) -> Any:
    """The process group to exchange with, or None if there is nothing to exchange.

    Args:
        batch_group: "all" for all ranks of torch.distributed if it is initialised, a process group, or None for this
            process alone.

    Raises:
        ValueError: if it is none of these.
    """
    if batch_group is None:
        return None
    if isinstance(batch_group, str):
        if batch_group != "all":
            raise ValueError(f"batch_group must be 'all', None or a process group, got {batch_group!r}")
        if not (dist.is_available() and dist.is_initialized()):
            return None
    if torch.compiler.is_compiling():  # that of torch 2.12 fails over a group which it looked up itself
        return torch.compiler.disable(_several)(batch_group)
    return _several(batch_group)


def _several(batch_group: Any) -> Any:
    group = dist.group.WORLD if isinstance(batch_group, str) else shards.checked(batch_group, "batch_group")
    return group if dist.get_world_size(group) > 1 else None


class _Given:
    """A batch group. Copies share a process group; a pickle leaves it out, since it belongs to its process."""

    def __init__(self, group: Any, lost: bool = False) -> None:
        self.group, self.lost = group, lost

    def __deepcopy__(self, memo: dict[int, Any]) -> _Given:
        return _Given(self.group, self.lost)

    def __reduce__(self) -> tuple[Any, ...]:
        here = self.group is None or isinstance(self.group, str)
        return _Given, (self.group if here else None, self.lost or not here)


class Dealt:
    """A module that is trained with a part of a batch on each rank, and exchanges statistics of it in training."""

    training: bool

    @property
    def batch_group(self) -> Any:
        """The ranks over which the batch is dealt: "all", a process group, or None for this process alone."""
        return self._batch_group.group

    @batch_group.setter
    def batch_group(self, group: Any) -> None:
        ranks_of(group)
        self._batch_group = _Given(group)

    def ranks(self) -> Any:
        """The process group to exchange with now; None in evaluation, and if there is nothing to exchange.

        Raises:
            ValueError: if the process group was left behind in another process.
        """
        if self._batch_group.lost:
            raise ValueError("batch_group must be given again, since a pickle leaves the process group out; got none")
        return ranks_of(self._batch_group.group) if self.training else None
