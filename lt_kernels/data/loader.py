"""A loader of in-memory tensors that resumes at the exact batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from lt_kernels.data.samplers import Order, ResumableSampler, Sequential, Shuffled


class ResumableLoader:
    """Iterate over batches of in-memory tensors in an order that is a function of (seed, epoch) alone.

    `data` is a sequence of tensors [N, ...], for example (inputs, target); a batch is the tuple of their rows. One
    index_select a tensor and batch, no worker processes, and no use of torch's global random state. `state_dict()`
    holds the epoch and the number of batches handed out; after `load_state_dict` the next iteration begins with the
    batch after them, and `len()` stays that of a whole epoch.

    shuffle=False keeps the samples as they lie and gives each exactly once over all ranks; otherwise ranks get equally
    many (the first samples of the epoch are repeated, or with drop_last the last ones left out). `order` replaces
    shuffle and seed, for example samplers.ClassBalanced(target, seed). Errors: ValueError for tensors of different or
    zero length, batch_size, rank, world_size or seed out of range.
    """

    def __init__(
        self,
        data: Sequence[Tensor],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        *,
        order: Order | None = None,
    ) -> None:
        self.tensors = tuple(data)
        lengths = [len(tensor) for tensor in self.tensors]
        if not lengths or min(lengths) != max(lengths) or lengths[0] == 0:
            raise ValueError(f"data must be tensors of one length of at least 1, got lengths {lengths}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        random = shuffle or order is not None
        if order is None:
            order = Shuffled(lengths[0], seed) if shuffle else Sequential(lengths[0])
        # trainers look for `sampler.set_epoch`
        self.sampler = ResumableSampler(order, lengths[0], batch_size, rank, world_size, drop_last, pad=random)

    @property
    def batch_size(self) -> int:
        """Samples in a full batch."""
        return self.sampler.batch_size

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for rows in self.sampler:
            batch = self.at(rows)
            self.prefetch(self.sampler.coming())
            yield batch

    def at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors' rows at some places."""
        return tuple(tensor.index_select(0, rows.to(tensor.device)) for tensor in self.tensors)

    def prefetch(self, rows: Tensor) -> None:
        """Have the rows that come next read while others are in use, where tensors stand for pictures in files."""
        for tensor in self.tensors:
            if hasattr(tensor, "prefetch"):
                tensor.prefetch(rows)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; within the epoch of a state that was just loaded, stay where that state is."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, as plain integers."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where `state` was taken; ValueError if it was taken with other data, batch size or number of ranks."""
        self.sampler.load_state_dict(state)


class DealtLoader(ResumableLoader):
    """Batches of `batch_size` samples over all ranks, each dealt over the ranks and over micro-batches.

    The order of samples is that of one process: a batch is cut into `micro_batches` times `world_size` parts of nearly
    the same size, of which this rank gets one for each micro-batch, and no sample is lost or repeated. Where a batch
    has fewer samples than parts, some are empty. What is yielded is the tensors' rows of a part and the number of
    samples in its whole batch. The state is that of one process, so ranks and micro-batches may be others when a run
    goes on; it must be taken after a batch's last part. Errors: ValueError as for `ResumableLoader`.
    """

    def __init__(
        self,
        data: Sequence[Tensor],
        batch_size: int,
        *,
        order: Order,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ) -> None:
        super().__init__(data, batch_size, order=order)
        if world_size < 1 or micro_batches < 1:
            raise ValueError(f"world_size and micro_batches must be at least 1, got {world_size} and {micro_batches}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be at least 0 and below world_size = {world_size}, got {rank}")
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches

    def __len__(self) -> int:
        return len(self.sampler) * self.micro_batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for rows in self.sampler:
            parts, coming = self.parts(rows), self.parts(self.sampler.coming())
            for part, following in zip(parts, [*parts[1:], coming[0]], strict=True):
                batch = self.at(part)
                self.prefetch(following)
                yield (*batch, len(rows))

    def parts(self, rows: Tensor) -> list[Tensor]:
        """This rank's part of each micro-batch of a batch."""
        return list(rows.tensor_split(self.micro_batches * self.world_size)[self.rank :: self.world_size])
