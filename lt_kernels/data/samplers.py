"""In which order the samples come: a function of (seed, epoch), and a sampler that can stop and go on at any batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Order(Protocol):
    """The order of one epoch over all ranks: order(epoch) -> int64 [num_samples], indices into the data."""

    def __call__(self, epoch: int) -> Tensor: ...


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a generator for (seed, epoch) alone: no order depends on torch's global state or on earlier epochs."""
    # torch's CPU generator reads 32 bits of its seed: both numbers are hashed into them
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


@dataclass(frozen=True)
class Sequential:
    """The samples as they lie, every epoch the same."""

    num_samples: int

    def __call__(self, epoch: int) -> Tensor:
        return torch.arange(self.num_samples)


@dataclass(frozen=True)
class Shuffled:
    """A permutation of all samples, a function of (seed, epoch) alone."""

    num_samples: int
    seed: int = 0

    def __call__(self, epoch: int) -> Tensor:
        return torch.randperm(self.num_samples, generator=epoch_generator(self.seed, epoch))


@dataclass(frozen=True, eq=False)
class ClassBalanced:
    """Draw a class, then one of its samples uniformly, with replacement, as many times as there are samples.

    A class c with n_c > 0 samples in `target` (int64 [N]) is drawn with a probability in proportion to n_c^power:
    power 0 is class-balanced sampling, 1/2 square-root sampling, 1 every sample alike (Kang et al., 2020). Errors:
    ValueError for a power that is not in 0..1.
    """

    target: Tensor
    seed: int = 0
    power: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 1:
            raise ValueError(f"power must be in 0..1, got {self.power}")
        object.__setattr__(self, "target", self.target.clone())  # read at the first draw, whenever that is

    def __call__(self, epoch: int) -> Tensor:
        return self._classes.draw(self._classes.counts.double() ** self.power, epoch_generator(self.seed, epoch))

    @functools.cached_property
    def _classes(self) -> _Classes:
        return _Classes(self.target)


@dataclass(frozen=True, eq=False)
class ProgressivelyBalanced:
    """Every sample alike in the first of `epochs` epochs, every class alike in the last, mixed in between.

    Class c is drawn with probability (1 - t) n_c / N + t / C, t = epoch / (epochs - 1), then one of its samples
    (Kang et al., 2020); C counts the classes with samples in `target` (int64 [N]). Errors: ValueError for fewer than
    one epoch.
    """

    target: Tensor
    epochs: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        object.__setattr__(self, "target", self.target.clone())

    def __call__(self, epoch: int) -> Tensor:
        counts, share = self._classes.counts, min(1.0, epoch / max(1, self.epochs - 1))
        mixed = (1 - share) * counts / counts.sum() + share * (counts > 0).double() / (counts > 0).sum()
        return self._classes.draw(mixed, epoch_generator(self.seed, epoch))

    @functools.cached_property
    def _classes(self) -> _Classes:
        return _Classes(self.target)


class _Classes:
    """The samples of each class in `target` (int64 [N]), sorted once and not at every epoch."""

    def __init__(self, target: Tensor) -> None:
        self.rows, self.counts = torch.argsort(target, stable=True), torch.bincount(target)

    def draw(self, share: Tensor, generator: torch.Generator) -> Tensor:
        """As many samples as there are: a class in proportion to `share` [C], then one of its samples."""
        bounds = torch.where(self.counts > 0, share, 0.0).cumsum(0)
        uniform = torch.rand(self.rows.shape, generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(bounds, uniform * bounds[-1], right=True)
        drawn = drawn.clamp(max=int(self.counts.nonzero().max()))  # the product may round up to the last bound
        within = torch.rand(self.rows.shape, generator=generator, dtype=torch.float64) * self.counts[drawn]
        return self.rows[(self.counts.cumsum(0) - self.counts)[drawn] + within.long()]


@dataclass(frozen=True, eq=False)
class Staged:
    """The order `first` before the epoch `start`; from it on the order `second`, whose epochs count from there."""

    first: Order
    second: Order
    start: int

    def __call__(self, epoch: int) -> Tensor:
        return self.second(epoch - self.start) if epoch >= self.start else self.first(epoch)


SAMPLERS = ("instance", "class", "sqrt", "progressive")


def make_order(name: str, target: Tensor, seed: int, epochs: int) -> Order:
    """The order by its name: "instance" (a permutation), "class", "sqrt" or "progressive" (over `epochs` epochs).

    target: int64 [N]. Errors: ValueError for another name.
    """
    if name == "instance":
        return Shuffled(len(target), seed)
    if name == "progressive":
        return ProgressivelyBalanced(target, epochs, seed)
    powers = {"class": 0.0, "sqrt": 0.5}
    if name not in powers:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got {name!r}")
    return ClassBalanced(target, seed, powers[name])


class ResumableSampler:
    """Yield the index tensors of this rank's batches, and be able to stop after any of them and go on there.

    Rank r takes every `world_size`-th index of order(epoch) from r on. With pad=True all ranks get equally many
    samples: the first indices are repeated at the end, as torch's DistributedSampler does; with pad=False every sample
    comes exactly once over all ranks. With drop_last, incomplete batches, and samples that do not fill all ranks, are
    left out.

    The state is read when a batch is asked for, not when the iterator is made: a state that is loaded, or an epoch that
    is set, after `iter()` still counts. An iterator begins at the epoch's first batch, unless a state was loaded and
    not yet used. A finished epoch is followed by the next one, with or without `set_epoch`.
    """

    def __init__(
        self,
        order: Order,
        num_samples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        pad: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be at least 0 and below world_size = {world_size}, got {rank}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.order, self.num_samples, self.batch_size = order, num_samples, batch_size
        self.rank, self.world_size, self.drop_last, self.pad = rank, world_size, drop_last, pad
        self.epoch = 0
        self.position = 0  # batches that this rank has handed out in this epoch
        self._resumed = False
        self._rows: tuple[int, Tensor] | None = None  # (epoch, this rank's indices), made once an epoch

    @property
    def rank_samples(self) -> int:
        """How many samples this rank sees in an epoch."""
        if self.drop_last:
            return self.num_samples // self.world_size
        extra = self.world_size - 1 if self.pad else self.world_size - 1 - self.rank
        return (self.num_samples + extra) // self.world_size

    def __len__(self) -> int:
        full, rest = divmod(self.rank_samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; within the epoch of a state that was just loaded, stay where that state is."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        if not (self._resumed and epoch == self.epoch):
            self.epoch, self.position, self._resumed = epoch, 0, False

    def rank_order(self) -> Tensor:
        """This rank's indices of the present epoch, int64 [rank_samples]."""
        if self._rows is None or self._rows[0] != self.epoch:
            mine = self.rank + self.world_size * torch.arange(self.rank_samples)
            self._rows = (
                self.epoch,
                self.order(self.epoch)[mine % self.num_samples],
            )  # beyond the end: the first ones again
        return self._rows[1]

    def _begin(self) -> None:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        elif not self._resumed:
            self.position = 0
        self._resumed = False

    def __iter__(self) -> Iterator[Tensor]:
        self._begin()  # runs at the first next(): a generator's body is lazy
        while self.position < len(self):
            first = self.position * self.batch_size
            self.position += 1  # before the yield: a checkpoint taken while the batch is in use counts it as used
            yield self.rank_order()[first : first + self.batch_size]

    def coming(self) -> Tensor:
        """The indices of the batch after the last one handed out, none at the end of an epoch."""
        first = self.position * self.batch_size
        return (
            self.rank_order()[first : first + self.batch_size] if self.position < len(self) else self.rank_order()[:0]
        )

    def _layout(self) -> dict[str, int]:
        return {"num_samples": self.num_samples, "batch_size": self.batch_size, "world_size": self.world_size}

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands: the epoch, the batches handed out in it, and the sizes it counts in."""
        return {"epoch": self.epoch, "position": self.position, **self._layout()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where `state` was taken; ValueError if it was taken with other data, batch size or number of ranks."""
        for name, value in self._layout().items():
            if state[name] != value:
                raise ValueError(f"state was taken with {name} = {state[name]}, but this loader has {name} = {value}")
        self.epoch, self.position, self._resumed = state["epoch"], state["position"], True
