"""Logit-weight repulsion from a list of near pairs that is kept across steps (docs/math.md, section 6).

Class weights turn slowly. A list of the pairs within the threshold's angle plus a skin holds every active pair until
two classes together have turned by more than the skin. Until then a step computes the listed pairs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lt_kernels.core import numbers
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.ops import tiles
from lt_kernels.ops.backends.library import say_once
from lt_kernels.ops.calling import apply, first_order, takes, watched
from lt_kernels.ops.gram import forward_op
from lt_kernels.reference import gram as reference

_SLAB = 2**18  # numbers of class weights compared at a time on a CPU: they stay in its cache
_WIDE = 2**24  # the same on other devices


def rounding(weight: Tensor) -> float:
    """How far a cosine or a chord of class weights [C, d] may be from the exact one.

    In roundings u of half an eps. A unit row is wrong by d / 2 + 4 (its length, and each entry). A cosine is wrong by
    two of them and a dot product, d; a chord, at most 2, by two of them and twice its norm, d / 2 + 3. Either way less
    than n = 2 (d + 16), and n u / (1 - n u) also holds what they do to each other.
    """
    share = (weight.shape[1] + 16) * torch.finfo(accumulate_type(weight.dtype)).eps
    return share / (1 - share) if share < 0.5 else math.inf


def limit(weight: Tensor, threshold: float, skin: float) -> float:
    """The cosine above which a pair is listed: the threshold's angle plus the skin, with room for both roundings.

    An active pair has an exact cosine above threshold - e, one that is not listed at most limit + e.
    """
    error = rounding(weight)
    angle = math.acos(max(-1.0, min(1.0, threshold - error))) + skin
    rough = 0.0 if torch.get_float32_matmul_precision() == "highest" else 2.0**-7  # the tiles' products may be rounded
    return -1.0 if angle >= math.pi else math.cos(angle) - error - rough


def inverse_norm(weight: Tensor, threshold: float) -> Tensor:
    """1 / |w| [C] with the bits that the full computation has, so that the same pairs are above the threshold.

    Screened tiles are decided by products as in `gram_listed`, and the squares of their norms are such products too.
    """
    if weight.device.type != "cpu" or not tiles.screening(weight, threshold)[0]:
        return numbers.inverse_norm(weight)
    index = torch.arange(weight.shape[0], dtype=torch.int32)
    square = tiles.listed_op(weight, torch.ones(weight.shape[0]), index, index)
    norm = square.double().sqrt().float().double()  # by float64, whose roots and quotients round to those of float32
    scale = torch.where(norm <= 1e-12, 0.0, 1 / norm.clamp_min(1e-12)).float()
    return torch.where(norm.isfinite(), scale, torch.nan)


def _parts(weight: Tensor, numbers: int) -> Iterator[slice]:
    height = max(1, numbers // max(weight.shape[1], 1))
    return (slice(start, start + height) for start in range(0, weight.shape[0], height))


def chords(weight: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
    """|w_i / |w_i| - u_i| [C]: 0 for a row without a direction now, 2 for one that had none then."""
    chord = torch.empty_like(scale)
    for part in _parts(weight, _SLAB if weight.device.type == "cpu" else _WIDE):
        turned = weight[part].to(scale.dtype) * scale[part, None]
        had = unit[part, :].count_nonzero(1) > 0
        chord[part] = torch.linalg.vector_norm(turned.sub_(unit[part]), dim=1).where(had, 2.0)
    return torch.where(scale == 0, 0.0, chord)


def rotation(chord: float, error: float) -> float:
    """The most that the angle (radians) can be whose chord was measured."""
    return 2 * math.asin(min(1.0, (chord + error) / 2))


def near_pairs(weight: Tensor, bound: float) -> tuple[Tensor, Tensor] | None:
    """The pairs i < j (int32) whose cosine is above a bound; None where they are too many for a list to pay."""
    if weight.device.type == "cpu":
        *_, first, second, _, count, dense = tiles.forward(weight, bound)
        if bool(dense.any()):  # one pair in 16 of a tile, or 48 a class: the list lacks some
            return None
        return first[: int(count)], second[: int(count)]
    *_, first, second, _, count, dense = forward_op(weight, bound)
    return _walked(weight, bound) if bool(dense.any()) else (first[: int(count)], second[: int(count)])


def _walked(weight: Tensor, bound: float) -> tuple[Tensor, Tensor] | None:
    """The same by slabs of whole rows, for devices whose kernels keep no list."""
    scale = numbers.inverse_norm(weight)
    found, room = [scale.new_empty(0, 2, dtype=torch.int64)], reference.PAIRS * weight.shape[0]
    with torch.autocast(weight.device.type, enabled=False):
        for rows, _, near in reference.slabs(weight.to(scale.dtype) * scale[:, None], bound):
            pairs = near.triu(rows.start + 1).nonzero()
            pairs[:, 0] += rows.start
            found.append(pairs)
            room -= pairs.shape[0]
            if room < 0:
                return None
    first, second = torch.cat(found).to(torch.int32).unbind(1)
    return first, second


def visiting(first: Tensor, second: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs in the order in which they are computed, and the place of each in the order of (first, second).

    Classes are visited beside those with the same least neighbour, so that similar rows are in the cache together.
    What is added up follows the other order: the same bits come out whenever the list was built.
    """
    first, second = first.long(), second.long()
    least = torch.arange(classes, device=first.device)
    for here, there in ((first, second), (second, first)):
        least = least.scatter_reduce(0, here, there, "amin")
    kept = (first * classes + second).argsort()
    first, second = first[kept], second[kept]
    visit = (least[first] * classes + first).argsort(stable=True)
    return first[visit].to(torch.int32), second[visit].to(torch.int32), visit.argsort()


def active_pairs(
    weight: Tensor, scale: Tensor, threshold: float, first: Tensor, second: Tensor, order: Tensor
) -> tuple[Tensor, ...]:
    """(Z [C], first, second, cosine, number): the listed pairs above the threshold.

    On a GPU in front of room for all of them: without a host sync their number stays on the device.
    """
    value = tiles.listed_op(weight, scale, first, second)[order]
    hit = value > threshold
    found = hit.nonzero() if weight.device.type == "cpu" else hit.nonzero_static(size=hit.numel(), fill_value=0)
    kept, count = found[:, 0], hit.sum().view(1)
    value, place = value[kept], order[kept]
    first, second = first[place], second[place]
    there = torch.arange(value.numel(), device=value.device) < count
    part = torch.where(there, value.double().expm1(), 0.0)
    total = torch.zeros_like(scale, dtype=torch.float64)
    numbers.add_rows(total, first, part)
    numbers.add_rows(total, second, part)
    return reference.finish(total, scale, threshold), first, second, value, count


def _gathered(
    weight: Tensor,
    scale: Tensor,
    slope: Tensor,
    own: Tensor,
    first: Tensor,
    second: Tensor,
    value: Tensor,
    count: Tensor,
    project: bool,
    wide: bool,
) -> Tensor:
    """`reference.gram_pairs` without a host sync: behind the listed pairs come some without a push."""
    there = torch.arange(first.numel(), device=first.device) < count
    push = torch.where(there, value.exp() * (slope[first] + slope[second]), 0.0)
    return reference.pushed(weight, scale, own, first, second, push, value, project, wide)


@takes(8)
class Listed(torch.autograd.Function):
    """R [C] of class weights [C, d] whose active pairs are given; the gradient is for the weights."""

    @staticmethod
    def forward(weight: Tensor, project: bool, total: Tensor, *pairs: Tensor) -> Tensor:
        return (total / math.e).log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, ctx.project, *saved = inputs
        ctx.save_for_backward(weight, *saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, total, scale, *pairs = ctx.saved_tensors
        own, slope = reference.diagonal(total, grad, -1.0, ctx.project), grad / total
        backward = tiles.pairs_op if weight.device.type == "cpu" else _gathered
        return first_order(backward, weight, scale, slope, own, *pairs, ctx.project, False), *(None,) * 7


class NeighbourList(nn.Module):
    """R of class weights from the pairs whose angle was at most arccos(threshold) + skin when they were listed.

    The list is made again when the two largest rotations since then come to more than the skin; so it holds every
    active pair, however old it is. The rotations are one decision on the host a step, and so one wait for a GPU.
    """

    def __init__(self, threshold: float, skin: float) -> None:
        super().__init__()
        self.threshold, self.skin, self.rebuilds = threshold, skin, 0
        self.status = "no call yet"
        self._dtype: torch.dtype | None = None
        # No buffers, which would come and go, and differ between ranks: a list is exact whatever its age, so a resumed
        # run, or one on another device, which builds its own, gets what the run would have had without the break.
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.order: Tensor | None = None
        self.bits: Tensor | None = None

    @property
    def pairs(self) -> int:
        """How many pairs are listed."""
        return 0 if self.first is None else self.first.numel()

    def forward(self, weight: Tensor, project: bool) -> Tensor | None:
        """R [C] in the dtype of the arithmetic; None, and the reason in `status`, where the full computation serves."""
        say_once()
        with torch.no_grad():
            scale = self._ready(weight.detach())
            if scale is None or self.first is None or self.second is None or self.order is None:
                return None
            total, *pairs = active_pairs(weight.detach(), scale, self.threshold, self.first, self.second, self.order)
        return apply(Listed, weight, project, total, scale, *pairs)

    def _ready(self, weight: Tensor) -> Tensor | None:
        """1 / |w| [C], with a list that holds every active pair; None without one."""
        why = self._hopeless(weight)
        if why:
            self.status = f"all pairs: {why}"
            return None
        scale = inverse_norm(weight, self.threshold)
        angle = self._turned(weight, scale)
        if not angle <= self.skin:  # NaN too
            if not bool(scale.isfinite().all()):
                self.status = "all pairs: a row of the class weights is not finite"
                return None
            self._build(weight, scale)
        full = self.first is None
        self.status = "all pairs: too many are near for a list to pay" if full else f"a list of {self.pairs} pairs"
        return None if full else scale

    def _hopeless(self, weight: Tensor) -> str:
        """The reason why no list is tried; empty if one is."""
        if watched():
            return "torch.compile and torch.func take no decisions from values"
        if weight.ndim != 2 or weight.shape[0] == 0:
            return "the class weights are no matrix"
        if self.threshold >= 1:
            return "nothing is active from a threshold of 1 on"
        if limit(weight, self.threshold, self.skin) <= 0:
            return "the threshold's angle and the skin come to a right angle, within which half of the pairs are"
        return ""

    def _turned(self, weight: Tensor, scale: Tensor) -> float:
        """The sum of the two largest rotations since the list was made (radians); infinite if it was for others."""
        bits, same = self.bits, self._dtype == weight.dtype
        if bits is None or not same or bits.shape != weight.shape or bits.device != weight.device:
            return math.inf
        most = chords(weight, scale, bits.view(scale.dtype)).topk(min(2, scale.numel())).values.tolist()
        return math.nan if any(map(math.isnan, most)) else sum(rotation(one, rounding(weight)) for one in most)

    def _build(self, weight: Tensor, scale: Tensor) -> None:
        self.rebuilds += 1
        self.first = self.second = self.order = None
        found = near_pairs(weight, limit(weight, self.threshold, self.skin))
        if found is not None:
            self.first, self.second, self.order = visiting(*found, weight.shape[0])
        # Kept as whole numbers, which a cast of the module leaves alone: rounded rows would hide a rotation.
        whole = torch.int64 if scale.dtype == torch.float64 else torch.int32
        self.bits, self._dtype = (weight.to(scale.dtype) * scale[:, None]).view(whole), weight.dtype
