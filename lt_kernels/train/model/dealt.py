"""Batches that are dealt over processes and micro-batches: each part's loss, and the whole batch's mean out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lt_kernels.core.checks import is_dtensor
from lt_kernels.distributed import clip_grad_norm_, gather_batch
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.losses import ARBLoss
from lt_kernels.losses.base import Loss
from lt_kernels.margins import MixedTarget


@dataclasses.dataclass
class Dealt:
    """How a batch is dealt: over `world` processes and `micro_batches` of each; `scenes` where pixels have classes.

    The gradient of a step is that of the whole batch's mean, whatever the parts' sizes. Where the loss is a mean over
    rows, each rank has that of its own; elsewhere features and targets of all ranks are gathered first, and every rank
    has the loss of the whole micro-batch: of pairs, of centres or of class weights that are sharded.
    """

    world: int
    micro_batches: int
    scenes: bool = False
    sharded: bool = False
    apart: bool = False  # whether nothing averages the gradients of what is not sharded
    weights: Tensor | None = None  # what the means of the step's parts divided by, added up, where that is no count
    whole: int = 0  # samples in the step's batch
    factor: Any = 1  # what the step's gradients were multiplied by at its end

    def gathers(self, head: Any) -> bool:
        """Whether the head wants the features of all ranks."""
        return self.world > 1 and (self.sharded or not (self.scenes or of_rows_alone(head)))

    def tell(self, module: nn.Module) -> None:
        """Have losses that would ask all ranks for statistics of the batch take them from what they are given, where
        that is gathered.
        """
        for part in module.modules():
            if hasattr(part, "batch_group") and not self.scenes:
                part.batch_group = None

    def weigh(self, head: Any, target: Any, whole: int) -> Any:
        """How much a part counts in the mean of the batch: its rows, or what the mean of its loss divides by. Where
        every rank has the loss of all ranks' rows, each counts for its share of them.

        target: the part's, or the gathered one. whole: the samples of the batch.
        """
        gathers, loss = self.gathers(head), getattr(head, "loss", None)
        ranks = self.world if gathers else 1
        alone = gathers and self.micro_batches == 1  # one part, whose mean is the batch's
        if alone or isinstance(target, MixedTarget) or not isinstance(loss, Loss) or not self._weighs(loss):
            return rows_of(target) / ranks
        weight = divisor(loss, target) / ranks
        self.weights = weight if self.weights is None else self.weights + weight
        self.whole = whole
        return weight

    def share(self, weight: Any, whole: int) -> Any:
        """What a part's loss is multiplied by, so that what trainer and averaging divide by is made up for."""
        return weight * (self.micro_batches * self.world / whole)

    def _weighs(self, loss: Loss) -> bool:
        """Whether a mean may divide by something else than the number of rows."""
        return self.scenes or (loss.weight is not None and loss.average == "weighted")

    def is_nothing(self, head: Any, target: Any) -> bool:
        """Whether a part, or the whole micro-batch where it is gathered, has no rows that count."""
        if not self.scenes:
            return rows_of(target) == 0
        return not bool((target != head.loss.ignore_index).any())  # waits for a GPU: a mean of no pixels is NaN

    def complete(self, parameters: Iterable[Tensor]) -> None:
        """Make the gradients that were added up those of the whole batch, before they are clipped and used."""
        grads = [one.grad for one in parameters if one.grad is not None]
        if self.apart and self.world > 1:
            average([grad for grad in grads if not is_dtensor(grad)], self.world)
        self.factor = 1
        if self.weights is None:
            return
        total, self.weights = self.weights.clone(), None  # what was recorded of a part stays
        if self.world > 1:
            dist.all_reduce(total)
        self.factor = torch.where(total > 0, self.whole / total, 1.0)
        for grad in grads:
            grad.mul_(self.factor.to(grad.dtype))


def average(grads: Sequence[Tensor], world: int) -> None:
    """Average gradients over the processes, in place and in one go: those that nothing else averages."""
    if not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, value in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(value.view_as(grad) / world)


def gathered(
    features: Tensor, target: Any, views: int, taught: dict[str, Tensor]
) -> tuple[Tensor, Any, dict[str, Tensor]]:
    """Features, view after view, targets and the teacher's logits of all ranks."""
    found = [gather_batch(part, target) for part in features.tensor_split(views)]
    logits = {name: gather_batch(value, target)[0] for name, value in taught.items()}
    return torch.cat([rows for rows, _ in found]), found[0][1], logits


def clip_gradients(parameters: Sequence[Tensor], most: float) -> Tensor:
    """Clip by the norm of the whole, of which some gradients may be shares."""
    sharded = any(map(is_dtensor, parameters))
    return clip_grad_norm_(parameters, most) if sharded else nn.utils.clip_grad_norm_(parameters, most)


def rows_of(target: Any) -> int:
    """N of targets [N, ...]."""
    return len(target.first if isinstance(target, MixedTarget) else target)


def of_rows_alone(head: Any) -> bool:
    """Whether the loss is a plain mean over the rows, each of which has a loss by itself."""
    loss = getattr(head, "loss", None)
    if type(head) not in (LinearHead, CosineHead) or not isinstance(loss, Loss):
        return False
    by_batch = loss.needs_features or loss.needs_logits or (isinstance(loss, ARBLoss) and loss.counts == "batch")
    return not by_batch and (loss.weight is None or loss.average == "batch")


def divisor(loss: Loss, target: Tensor) -> Tensor:
    """What the mean of a loss divides by, float64: the rows with a class, or their weights."""
    known = target != loss.ignore_index
    if loss.weight is None or loss.average == "batch":
        return known.sum().double()
    return torch.where(known, loss.weight[target.where(known, 0)], 0.0).double().sum()


def nothing(features: Tensor, head: Any, target: Any) -> Tensor:
    """A loss of no rows, 0: with gradients of 0, so that averaging waits for no process; and where the others add up
    statistics of the batch, they hear of none from here.
    """
    loss = getattr(head, "loss", None)
    if isinstance(loss, Loss) and loss.ranks() is not None:
        loss.table(target, len(head.weight))
    parts = [one.sum() for one in head.parameters() if one.requires_grad and not hasattr(one, "placements")]
    return sum(parts, features.sum()) * 0
