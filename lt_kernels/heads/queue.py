"""A queue of features with classes, each class in places of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.tables import TableModule, follow
from lt_kernels.ops.ranks import batches


class Held(NamedTuple):
    """What a queue holds."""

    features: Tensor  # [S, d]
    labels: Tensor  # [S]; -1 is an empty place
    following: Tensor  # [C]: the place, within its class's, where each class goes on


def places(prior: Tensor, size: int, per_class: int) -> Tensor:
    """How many places each class has, int64 [C]: `per_class`, and the others by the prior; `size` altogether."""
    prior, classes = prior.cpu(), prior.numel()
    size, per_class = checks.whole("queue", size), checks.whole("per_class", per_class)
    if size < classes * per_class:
        raise ValueError(f"queue must be at least {classes * per_class}, {per_class} for each class, got {size}")
    share = (prior.to(torch.float64) / prior.sum()).cumsum(0) * (size - classes * per_class)
    ends = torch.ceil(share - 1e-9).to(torch.int64) + per_class * torch.arange(1, classes + 1, device=share.device)
    ends[-1] = size
    return ends.diff(prepend=ends.new_zeros(1))


class ClassQueue(TableModule):
    """Features of earlier batches [S, d]: within a class's places the oldest one goes first (Suh and Seo, 2023).

    So a class that was seen once keeps a key, however rare it is. Features, labels and the next places are buffers, and
    part of the state_dict; all start empty. Nothing here waits for the device.

    Args:
        in_features: d.
        prior: the share of each class [C].
        size: S. per_class: places that each class has at least.

    The features follow the module's dtype, for they are as many as the memory holds.
    """

    beside = ("count", "start")  # where each class has its places: a setting, and no state

    def __init__(self, in_features: int, prior: Tensor, size: int, per_class: int) -> None:
        super().__init__()
        count = places(prior, size, per_class)
        size = int(size)
        self.register_buffer("features", torch.zeros(size, in_features))
        count = follow(count, self.features.device)
        self.count, self.start = count, count.cumsum(0) - count
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("following", torch.zeros(len(count), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Empty the queue."""
        self.features, self.labels = torch.zeros_like(self.features), torch.full_like(self.labels, -1)
        self.following = torch.zeros_like(self.following)

    def after(self, features: Tensor, target: Tensor) -> tuple[Held, Tensor]:
        """The contents after features [N, d] of classes [N] have entered, and each one's place [N] (-1: none).

        Of a class with more rows than places, the first rows enter. The queue itself stays as it is.
        """
        size, rows = self.labels.shape[0], torch.arange(target.shape[0], device=target.device)
        rank, room = _rank(target), self.count[target]
        enters = rank < room
        place = self.start[target] + (self.following[target] + rank) % room
        beyond = torch.where(enters, place, size)
        source = self.labels.new_full((size + 1,), -1).scatter_reduce(0, beyond, rows, "amax")[:size]
        new, row = source >= 0, source.clamp_min(0)
        held = torch.where(new[:, None], features.to(self.features.dtype)[row], self.features)
        arrived = torch.zeros_like(self.following).scatter_add(0, target, enters.to(torch.int64))
        labels = torch.where(new, target[row], self.labels)
        own = torch.where(enters, place, -1)
        return Held(held, labels, (self.following + arrived) % self.count), own

    def after_ranks(self, group: Any, features: Tensor, target: Tensor) -> tuple[Held, Tensor, Tensor]:
        """The same after the features of all ranks of a group have entered, in their order; this rank's places [N].

        Third, the factor that makes a mean over this rank's rows with other keys of their class, weighed by the rank's
        share of all rows, add up to the mean over all such rows.
        """
        named, state = [("features", features), ("target", target)], (self.features, self.labels, self.following)
        said = list(zip(("the queue's features", "the queue's labels", "the queue's next places"), state, strict=True))
        dealt, (found, label) = batches.gathered(group, named, said)
        held, own = self.after(found, label)
        there = (held.labels >= 0).to(torch.int64)
        count = torch.zeros_like(held.following).scatter_add(0, held.labels.clamp_min(0), there)
        others = (count[label] > (own >= 0)).double()
        share = others[dealt.own].mean() / others.mean()
        return held, own[dealt.own], torch.where(others.any(), share, 0.0)

    def keep(self, held: Held) -> None:
        """Hold these from now on; new tensors, since the backward pass may need the old ones."""
        self.features, self.labels, self.following = held


def _rank(target: Tensor) -> Tensor:
    """How many earlier rows have the same class [N]."""
    order = torch.argsort(target, stable=True)
    ordered = target[order]
    rank = torch.arange(target.shape[0], device=target.device) - torch.searchsorted(ordered, ordered)
    return torch.zeros_like(target).scatter(0, order, rank)
