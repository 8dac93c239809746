"""Rows that are dealt over the ranks of a group: the reduced loss and the gradients are those of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lt_kernels.ops.ranks import exchange, shards


class Batch:
    """One forward pass of the ranks of a group, each of which has rows of its own."""

    def __init__(self, group: Any) -> None:
        self.meeting = shards.Meeting(group)

    def copies(self, values: Sequence[Any]) -> list[Any]:
        """The values, the gradients of tensors among them summed over the ranks."""
        learned = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
        if not learned or not torch.is_grad_enabled():
            return list(values)
        copied = iter(shards.Copy.apply(self.meeting, *learned))
        return [next(copied) if isinstance(one, Tensor) and one.requires_grad else one for one in values]

    def agree(self, *said: tuple[str, Any]) -> None:
        """Names and values that must be the same on every rank, which the exchange compares."""
        self.meeting.said += [exchange.check(name, value) for name, value in said]

    def reduced(self, values: list[Tensor], divisors: list[Any], reduction: str) -> list[Tensor]:
        """Losses of rows as they are; of sums their share of all ranks' sum, or of the mean, by one exchange."""
        like = values[0]
        if reduction == "none":
            self.meeting.gather(like.new_zeros(1, dtype=torch.float64))
            return values
        shared = _stacked(divisors, like) if reduction == "mean" else None
        return [_Total.apply(torch.stack(values), shared, self.meeting)]


def _stacked(numbers: list[Any], like: Tensor) -> Tensor:
    """Numbers, tensors or not, as float64."""
    return torch.stack([torch.as_tensor(one, dtype=torch.float64, device=like.device) for one in numbers])


class _Total(torch.autograd.Function):
    """The sum of all ranks' sums [P], each divided by the sum of all ranks' divisors [P]; added in float64."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, divisors: Tensor | None, meeting: shards.Meeting) -> Tensor:
        parts = sums.to(torch.float64)
        found = meeting.gather(parts if divisors is None else torch.cat((parts, divisors))).sum(0)
        ctx.parts, ctx.kind = len(sums), sums.dtype
        shared = found[len(sums) :]
        ctx.save_for_backward(shared)
        return (found[: len(sums)] / shared if len(shared) else found).sum().to(sums.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (divisors,) = ctx.saved_tensors
        found = grad / divisors if len(divisors) else grad.expand(ctx.parts)
        return found.to(ctx.kind), None, None
