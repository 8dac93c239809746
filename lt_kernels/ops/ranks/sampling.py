"""Class sampling: the classes of a batch's targets and a share of the others, which are drawn anew at each step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.linear import Normalize
from lt_kernels.core.numbers import SPLITMIX_STEP, accumulate_type, mixed
from lt_kernels.core.targets import at_target, check_target
from lt_kernels.core.terms import Terms
from lt_kernels.margins import MixedTarget
from lt_kernels.ops import directions, linear

_FIRST = 2**63 - 1  # the key of a positive: before all others


class Sampling(NamedTuple):
    """How classes are chosen: the share of a rank's rows, and whether the drawn ones are corrected by log q."""

    share: float
    logq: bool

    def draw(self, target: Any, ignore_index: int, weight: Tensor, start: int) -> Chosen:
        """The positives among the classes [start, start + size) of `weight` [size, d], and drawn negatives.

        The only host sync on a GPU is the number of positives, where a batch may have more of them than the share.
        """
        flat, size = _indices(target, weight), weight.shape[0]
        mine = (flat >= start) & (flat < start + size) & (flat != ignore_index)
        positive = torch.zeros(size + 1, dtype=torch.bool, device=weight.device)
        positive = positive.index_fill(0, torch.where(mine, flat - start, size), True)[:size]
        wanted = min(size, max(1, round(self.share * size)))
        if flat.numel() > wanted:
            wanted = max(wanted, int(positive.sum()))
        keys = _keys(start, size, weight.device)  # always, so that torch's generator does not depend on the batch
        if wanted == size:
            return Chosen(self, None, None)
        rows = keys.masked_fill(positive, _FIRST).topk(wanted, sorted=False).indices.sort().values
        count = positive.sum().double()
        return Chosen(self, rows, torch.where(positive[rows], 1.0, (size - count) / (wanted - count)))


class Chosen(NamedTuple):
    """The classes of one step: the places of their rows, ascending, and how many classes each stands for.

    A positive stands for itself, a negative for all that it was drawn from, evenly. None: all classes of this rank.
    """

    sampling: Sampling
    rows: Tensor | None
    stands: Tensor | None

    def statistics(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        terms: Terms,
        normalize: int,
        start: int = 0,
        classes: int | None = None,
        softcap: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """`linear.statistics` of the chosen rows; targets [N, K] and the columns of the tables are as without it."""
        if self.rows is None or self.stands is None:
            weight = weight if normalize == Normalize.NOTHING else directions.in_range(weight)
            return linear.statistics(input, weight, bias, target, terms, normalize, start, classes, softcap)
        classes = weight.shape[0] if classes is None else classes
        if checks.readable(target):  # else the operator does, which knows the places alone
            check_target(target, classes, terms.ignore_index)
        weight = F.embedding(self.rows, weight)  # whose backward pass is the fastest of those that gather rows
        weight = weight if normalize == Normalize.NOTHING else directions.in_range(weight)
        bias = None if bias is None else bias[self.rows]
        target = _places(self.rows, target, start, classes, terms.ignore_index)
        local, excess = self._tables(terms, self.rows, self.stands, accumulate_type(input.dtype))
        found = linear.statistics(input, weight, bias, target, local, normalize, 0, len(self.rows) + 1, softcap)
        rest, own, own_offset, mean, *more = found
        return rest, own, own_offset, mean if excess is None else mean - excess, *more

    def _tables(self, terms: Terms, rows: Tensor, stands: Tensor, kind: torch.dtype) -> tuple[Terms, Tensor | None]:
        """The chosen columns of the tables, and what log q adds to the mean, which is one of logits without it."""
        offset = None if terms.offset is None else terms.offset[:, rows]
        share = None if terms.mean_weight is None else terms.mean_weight[:, rows] * stands.to(kind)
        excess = None
        if self.sampling.logq:
            more = stands.log().to(kind)
            offset = more[None] if offset is None else offset + more
            excess = None if share is None else (share * more).sum(1)
        return terms._replace(offset=offset, mean_weight=share, ignore_index=-100), excess


def with_total(terms: Terms, shares: Tensor, target: Tensor) -> Terms:
    """The terms with the sum of the chosen classes' shares: `shares`, which lack the targets' [N, K], and these."""
    if terms.mean_weight is None:
        return terms
    total, seen = shares, torch.full_like(target[:, :1], terms.ignore_index)
    for column in target.unbind(1):
        new = (seen != column[:, None]).all(1)  # neither an ignored target nor that of an earlier column
        total = total + torch.where(new, at_target(terms.mean_weight, terms.offset_row, column), 0.0)
        seen = torch.cat((seen, column[:, None]), 1)
    return terms._replace(total=total)


def _indices(target: Any, like: Tensor) -> Tensor:
    """All class indices of a target, flat."""
    given = (("first", target.first), ("second", target.second)) if isinstance(target, MixedTarget) else ()
    if isinstance(target, Tensor) and target.is_floating_point():
        raise ValueError(
            f"target must hold class indices where classes are sampled, got probabilities {list(target.shape)}"
        )
    found = [checks.indices(name, one, getattr(one, "shape", ()), like) for name, one in given or (("target", target),)]
    return torch.cat([one.reshape(-1) for one in found])


def _places(rows: Tensor, target: Tensor, start: int, classes: int, ignore_index: int) -> Tensor:
    """The places of targets among the k chosen rows; k for those of other ranks, k + 1 for none, -100 for ignored."""
    local = (target - start).contiguous()
    place = torch.searchsorted(rows, local).clamp(max=len(rows) - 1)
    place = torch.where(rows[place] == local, place, len(rows))
    place = torch.where((target < 0) | (target >= classes), len(rows) + 1, place)
    return torch.where(target == ignore_index, -100, place)


def _keys(start: int, size: int, device: torch.device) -> Tensor:
    """A random key for each class [size], all different.

    One number is drawn from torch's generator of the device, whatever the number of classes, so generators that are in
    step on all ranks stay so. The mixing function of splitmix64 makes it a key for each class, by the class's index.
    """
    number = torch.randint(-(2**63), 2**63 - 1, (), device=device)
    return mixed(torch.arange(start + 1, start + size + 1, device=device) * SPLITMIX_STEP + number)
