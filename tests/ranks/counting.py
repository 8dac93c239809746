"""A process group that counts the bytes of each collective before gloo carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

# By the group's method: the collective, and the place of what this rank gives to it. torch calls some by a newer name.
COLLECTIVES = {
    "allgather": ("all_gather", 1),
    "_allgather_base": ("all_gather", 1),
    "all_gather_single": ("all_gather", 1),
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce", 0),
    "reduce_scatter": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "broadcast": ("broadcast", 0),
    "scatter": ("scatter", 1),
}
OLDER = {"all_gather_single": "_allgather_base", "reduce_scatter_single": "_reduce_scatter_base"}


class Counting(dist.ProcessGroup):
    """Gloo's group with a record: (collective, bytes that this rank gave). A collective that it lacks is an error."""

    def __init__(self, options: Any, _: Any) -> None:
        super().__init__(options.group_rank, options.group_size)
        self.name, self.sent = options.group_id, []
        self.carrier = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)

    def getGroupName(self) -> str:  # by which a mesh finds it
        return self.name

    def barrier(self, opts: Any = None) -> Any:
        """A barrier, which sends no tensor."""
        return self.carrier.barrier(opts)


def _bytes(given: Any) -> int:
    """The bytes of a tensor, or of lists of them."""
    if isinstance(given, Tensor):
        return given.numel() * given.element_size()
    return sum(map(_bytes, given))


def _method(name: str, collective: str, place: int) -> Callable[..., Any]:
    def carry(self: Counting, *args: Any, **kwargs: Any) -> Any:
        self.sent.append((collective, _bytes(args[place])))
        known = name if hasattr(self.carrier, name) else OLDER[name]
        return getattr(self.carrier, known)(*args, **kwargs)

    return carry


for _name, _found in COLLECTIVES.items():
    setattr(Counting, _name, _method(_name, *_found))


def register() -> None:
    """Make the backend "counting" known to torch.distributed."""
    dist.Backend.register_backend("counting", Counting, extended_api=True, devices=["cpu"])
