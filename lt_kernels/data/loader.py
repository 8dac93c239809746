"""A loader of in-memory tensors that resumes at the exact batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for rows in self.sampler:
            batch = tuple(tensor.index_select(0, rows.to(tensor.device)) for tensor in self.tensors)
            for tensor in self.tensors:
                if hasattr(tensor, "prefetch"):  # pictures are read while the batch before them is in use
                    tensor.prefetch(self.sampler.coming())
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; within the epoch of a state that was just loaded, stay where that state is."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, as plain integers."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where `state` was taken; ValueError if it was taken with other data, batch size or number of ranks."""
        self.sampler.load_state_dict(state)
