"""The processes of a run as each of them sees the others: who leads, what all are told, and what becomes of errors."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.system.files import FileError
from lt_kernels.system.storage import FolderInUse
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError, RunFailed, ToldElsewhere
from lt_kernels.train.ranks.launch import launched, placement

Value = TypeVar("Value")
# how torch words that a process of the group is gone or did not answer
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|time-?out", re.IGNORECASE)
SPEAKING = 1.0  # seconds for the process with an error to say it: torchrun ends it as soon as another one has ended


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among `world` ones, `devices` of them on each machine. One alone has no process group."""

    rank: int = 0
    world: int = 1
    devices: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def lead(self, work: Callable[[], Value]) -> Value:
        """What `work` returns in the first process, in all of them; its error ends the others as well.

        Errors: those of `work` in the first process, ToldElsewhere in the others.
        """
        if self.world == 1:
            return work()
        said: Any = [None, None]
        problem: Exception | None = None
        try:
            said[0] = work() if self.first else None
        except Exception as error:
            said[1], problem = status_of(error), error
        dist.broadcast_object_list(said, src=0)
        if problem is not None:
            raise problem
        if said[1] is not None:
            raise ToldElsewhere(said[1])
        return said[0]

    def alike(self, work: Callable[[], Value]) -> Value:
        """What `work`, which waits for no other process, returns here; an error in any process ends all of them.

        Errors: those of `work` in the first process that has one, ToldElsewhere in the others.
        """
        if self.world == 1:
            return work()
        found: Any = None
        problem: Exception | None = None
        try:
            found = work()
        except Exception as error:
            problem = error
        statuses = self.each(None if problem is None else status_of(problem))
        failed = [place for place, status in enumerate(statuses) if status is not None]
        if not failed:
            return found
        if failed[0] == self.rank and problem is not None:
            raise problem
        raise ToldElsewhere(statuses[failed[0]])

    def each(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, in each of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def share(self, length: int) -> list[int]:
        """How many of `length` things each process has where they are dealt as evenly as possible."""
        return [length // self.world + (place < length % self.world) for place in range(self.world)]

    def joined(self, own: Tensor, length: int) -> Tensor:
        """The rows [length, ...] of all processes in their order, from this one's, as many as `share` says."""
        if self.world == 1:
            return own
        sizes = self.share(length)
        padded = own.new_zeros((sizes[0], *own.shape[1:]))  # a collective wants one shape, and the first has most
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


ALONE = Ranks()


def status_of(error: Exception) -> int:
    """The exit status that an error ends a command with."""
    if isinstance(error, ToldElsewhere):
        return error.status
    return 2 if isinstance(error, (ConfigError, FileError, FolderInUse)) else 1


@contextlib.contextmanager
def together(config: TrainConfig) -> Iterator[Ranks]:
    """Within, this process and those that torchrun has started beside it are one group; alone, there is none.

    Errors: ConfigError for processes that are not there; RunFailed where one is lost or does not answer in time.
    """
    devices, nodes = placement(config)
    world = devices * nodes
    if world == 1:
        yield ALONE
        return
    backend = _backend(devices)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with noticing_loss(config):
        dist.init_process_group(backend, timeout=timedelta(seconds=config.timeout))
        try:
            yield Ranks(dist.get_rank(), world, devices)
        except (ConfigError, FileError, FolderInUse, ToldElsewhere) as error:  # all know of it, and none waits
            if isinstance(error, ToldElsewhere):
                time.sleep(SPEAKING)
            dist.destroy_process_group()
            raise
    dist.destroy_process_group()


@contextlib.contextmanager
def noticing_loss(config: TrainConfig) -> Iterator[None]:
    """Have the errors that torch raises where another process is gone or does not answer say that, as RunFailed."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or (type(error) is RuntimeError and LOST.search(str(error)))):
            raise
        reason = str(error).strip().splitlines()[0]
        what = f"another process of the run is gone, or did not answer in {config.timeout} s"
        raise RunFailed(f"{what}: {reason}") from error


def _end_with_parent() -> None:
    """A process that torchrun started does not outlive it, even where that was killed and could end nothing."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _backend(devices: int) -> str:
    """What the processes speak by; on GPUs each gets its own."""
    if not launched():
        raise ConfigError(
            f"devices must be 0 or 1 unless `lt-kernels train` or torchrun starts the processes, got {devices}"
        )
    if not torch.cuda.is_available():
        return "gloo"
    if devices > torch.cuda.device_count():
        raise ConfigError(f"devices must be at most the {torch.cuda.device_count()} GPUs here, got {devices}")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return "cpu:gloo,cuda:nccl"
