"""The formulas of docs/cluster.md: what a rank holds, and what it sends at each step, in bytes.

tests/ranks/traffic.py holds those of what is sent against what a process group has counted; `million` holds those of
what is held against the memory of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lt_kernels.ops import linear_policy
from lt_kernels.ops.ranks.exchange import HEAD

FLOAT = 4  # bytes of a number
INDEX = 8  # bytes of a class index

# What a rank sends for n bytes that it gives to a collective of W ranks, by the ring algorithm: rings are what NCCL and
# gloo use for large tensors, and no algorithm can send less in all.
WIRE = {
    "all_gather": lambda n, world: (world - 1) * n,
    "reduce_scatter": lambda n, world: (world - 1) / world * n,
    "all_reduce": lambda n, world: 2 * (world - 1) / world * n,
}


class Sent(NamedTuple):
    """A collective, and the bytes that each rank gives to it."""

    collective: str
    given: int

    def wire(self, world: int) -> float:
        """What each rank sends."""
        return WIRE[self.collective](self.given, world)


def rows_of(classes: int, world: int) -> int:
    """The class weights of the rank that has the most."""
    return math.ceil(classes / world)


def payload(rows: int, targets: int = 1, smoothing: bool = False, width: int = FLOAT) -> int:
    """The statistics of N rows with K targets each: 3 + 2 K numbers a row, and 2 more with label smoothing."""
    return 8 * math.ceil(rows * (3 + 2 * targets + 2 * smoothing) * width / 8)


def frame(statistics: int) -> int:
    """A frame: the head, in which errors and checksums travel, and room for the statistics of the last forward pass."""
    return 8 * HEAD + statistics


def head_step(rows: int, features: int, statistics: int, width: int = FLOAT) -> list[Sent]:
    """A sharded head, forward and backward: frames, then the gradient of all N features [N, d]."""
    return [
        Sent("all_gather", frame(statistics)),
        Sent("all_gather", frame(statistics)),
        Sent("all_reduce", rows * features * width),
    ]


def batch_step(
    most: int, world: int, features: int, statistics: int, target: int = INDEX, width: int = FLOAT
) -> list[Sent]:
    """`gather_batch`, forward and backward, where the rank with the most has `most` rows; `target`: bytes of one."""
    return [
        Sent("all_gather", frame(statistics)),
        Sent("all_gather", most * (features * width + target)),
        Sent("all_gather", frame(statistics)),
        Sent("reduce_scatter", world * most * features * width),
    ]


def clip_step(statistics: int) -> list[Sent]:
    """`distributed.clip_grad_norm_` with sharded class weights: a frame, with the norm of this rank's part."""
    return [Sent("all_gather", frame(statistics))]


def replicated_step(numbers: int, width: int = FLOAT) -> list[Sent]:
    """`DistributedDataParallel`: the gradients of all parameters."""
    return [Sent("all_reduce", numbers * width)]


def fully_sharded_step(numbers: int, world: int, width: int = FLOAT) -> list[Sent]:
    """`fully_shard` of one module that is gathered for each pass: parameters twice, gradients once."""
    part = math.ceil(numbers / world) * width
    return [Sent("all_gather", part), Sent("all_gather", part), Sent("reduce_scatter", world * part)]


def wire(sent: Sequence[Sent], world: int) -> float:
    """Bytes that each rank sends."""
    return sum(one.wire(world) for one in sent)


class Held(NamedTuple):
    """Bytes of one rank during a step with AdamW: what stays, and what is there for a while."""

    weights: int
    gradients: int
    moments: int
    chosen: int  # copies of the sampled rows, and their gradient
    logits: int  # within the memory budget

    @property
    def stays(self) -> int:
        """Without the logits and the sampled rows."""
        return self.weights + self.gradients + self.moments


def sharded_memory(classes: int, features: int, world: int, rows: int, sample: float = 1.0) -> Held:
    """A rank of a sharded head of float32 weights on a CPU, whose features [N, d] are those of the whole batch."""
    own = rows_of(classes, world)
    chosen = max(1, round(sample * own))
    policy = linear_policy(torch.empty(1).expand(rows, features), torch.empty(1).expand(chosen, features))
    slab = 2 * policy.row_slab * policy.class_slab  # logits and their gradient
    logits = rows * chosen * policy.keep + slab
    weights = own * features * FLOAT
    copies = 0 if chosen == own else 2 * chosen * features * FLOAT
    return Held(weights, weights, 2 * weights, copies, logits * FLOAT)


def replicated_memory(classes: int, features: int) -> int:
    """What stays on each rank where each has all class weights."""
    return 4 * classes * features * FLOAT


def fully_sharded_memory(classes: int, features: int, world: int) -> int:
    """Shares of weights, gradients and moments, and the whole weights and their whole gradient in the backward pass."""
    return (4 * rows_of(classes, world) + 2 * classes) * features * FLOAT
