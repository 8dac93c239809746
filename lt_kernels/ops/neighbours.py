"""Logit-weight repulsion from a list of near pairs that is kept across steps (docs/math.md, section 6).

Class weights rotate slowly. A list of the pairs whose angle is at most that of the threshold plus a skin holds every
active pair, until two classes have rotated by more than the skin in sum. Up to then a step computes the listed pairs
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lt_kernels.core import numbers
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.ops import directions, tiles
from lt_kernels.ops.backends.library import say_once
from lt_kernels.ops.calling import apply, first_order, takes, watched
from lt_kernels.ops.gram import forward_op, value_of
from lt_kernels.ops.pair_sums import sums_of
from lt_kernels.reference import gram as reference

_SLAB = 2**18  # numbers of class weights compared at a time on a CPU: they stay in its cache
_WIDE = 2**24  # the same on other devices


def rounding(weight: Tensor) -> float:
    """A bound on the rounding error of a cosine or a chord of class weights [C, d].

    In units of u = eps / 2: the error of a unit row is at most d / 2 + 4 (of its length and of each entry). That of a
    cosine is two of these plus the d roundings of a dot product; that of a chord, which is at most 2, two of these plus
    twice the d / 2 + 3 of its norm. Both are below n = 2 (d + 16), and n u / (1 - n u) covers the higher orders.
    """
    share = (weight.shape[1] + 16) * torch.finfo(accumulate_type(weight.dtype)).eps
    return share / (1 - share) if share < 0.5 else math.inf


def limit(weight: Tensor, threshold: float, skin: float) -> float:
    """The cosine above which a pair is listed: that of the threshold's angle plus the skin, less the rounding errors.

    With e from `rounding`, the exact cosine of an active pair is above threshold - e, that of a pair that is not
    listed at most limit + e.
    """
    error = rounding(weight)
    angle = math.acos(max(-1.0, min(1.0, threshold - error))) + skin
    rough = 0.0 if torch.get_float32_matmul_precision() == "highest" else 2.0**-7  # the tiles' products may be rounded
    return -1.0 if angle >= math.pi else math.cos(angle) - error - rough


def inverse_norm(weight: Tensor, threshold: float) -> Tensor:
    """1 / |w| [C] with the same bits as in the full computation, so that the same pairs are above the threshold.

    With screening, the full computation takes cosines and squares of norms from the dot products of `gram_listed`.
    """
    if weight.device.type != "cpu" or not tiles.screening(weight, threshold)[0]:
        return numbers.inverse_norm(weight)
    index = torch.arange(weight.shape[0], dtype=torch.int32)
    square = tiles.listed_op(weight, torch.ones(weight.shape[0]), index, index)
    norm = square.double().sqrt().float().double()  # in float64, which rounds to the same float32 root and quotient
    scale = torch.where(norm <= 1e-12, 0.0, 1 / norm.clamp_min(1e-12)).float()
    return torch.where(norm.isfinite(), scale, torch.nan)


def _parts(weight: Tensor, numbers: int) -> Iterator[slice]:
    height = max(1, numbers // max(weight.shape[1], 1))
    return (slice(start, start + height) for start in range(0, weight.shape[0], height))


def chords(weight: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
    """|w_i / |w_i| - u_i| [C]: 0 for a row that has no direction now, 2 for one that had none in the list."""
    chord = torch.empty_like(scale)
    for part in _parts(weight, _SLAB if weight.device.type == "cpu" else _WIDE):
        turned = weight[part].to(scale.dtype) * scale[part, None]
        had = unit[part, :].count_nonzero(1) > 0
        chord[part] = torch.linalg.vector_norm(turned.sub_(unit[part]), dim=1).where(had, 2.0)
    return torch.where(scale == 0, 0.0, chord)


def rotation(chord: float, error: float) -> float:
    """The largest angle (radians) that a measured chord with this error allows."""
    return 2 * math.asin(min(1.0, (chord + error) / 2))


def near_pairs(weight: Tensor, bound: float) -> tuple[Tensor, Tensor] | None:
    """The pairs i < j (int32) whose cosine is above a bound; None if a list of so many would not be faster."""
    if weight.device.type == "cpu":
        *_, first, second, _, count, dense = tiles.forward(weight, bound)
        if bool(dense.any()):  # more than one pair in 16 of a tile, or 48 per class: the list is incomplete
            return None
        return first[: int(count)], second[: int(count)]
    *_, first, second, _, count, dense = forward_op(weight, bound, False)
    return _walked(weight, bound) if bool(dense.any()) else (first[: int(count)], second[: int(count)])


def _walked(weight: Tensor, bound: float) -> tuple[Tensor, Tensor] | None:
    """The same by slabs of whole rows, for devices whose kernels make no list."""
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
    """The pairs in the order in which they are computed, and for each pair in the order of (first, second) its place.

    Classes with the same smallest neighbour are visited one after the other, so that similar rows are in the cache.
    Sums follow the order of (first, second), so that their bits do not depend on when the list was built.
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
    weight: Tensor,
    scale: Tensor,
    threshold: float,
    first: Tensor,
    second: Tensor,
    order: Tensor,
    raw: bool = False,
) -> tuple[Tensor, ...]:
    """(Z [C], first, second, cosine, number): the listed pairs above the threshold. With `raw`: R, and products.

    On a GPU these arrays have room for all listed pairs, because their number is known on the device alone.
    """
    sums = sums_of(scale, weight, raw)
    value = tiles.listed_op(weight, sums.factor, first, second)
    hit = (sums.cosines(value, first, second) > threshold)[order]
    value = value[order]
    found = hit.nonzero() if weight.device.type == "cpu" else hit.nonzero_static(size=hit.numel(), fill_value=0)
    kept, count = found[:, 0], hit.sum().view(1)
    value, place = value[kept], order[kept]
    first, second = first[place], second[place]
    sums.add(first, second, value, torch.arange(value.numel(), device=value.device) < count)
    return sums.result(threshold), first, second, value, count


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
    shift: Tensor | None,
) -> Tensor:
    """`reference.gram_pairs` without a host sync: entries after the first `count` get a coefficient of 0."""
    there = torch.arange(first.numel(), device=first.device) < count
    shifts = None if shift is None else (shift[first], shift[second])
    push = torch.where(there, reference.coefficients(value, slope[first], slope[second], shifts), 0.0)
    scale = scale if shift is None else torch.ones_like(scale)
    return reference.pushed(weight, scale, own, first, second, push, value, project, wide)


@takes(9)
class Listed(torch.autograd.Function):
    """R [C] of class weights [C, d] whose active pairs are given, with the gradient for the weights."""

    @staticmethod
    def forward(weight: Tensor, project: bool, raw: bool, total: Tensor, *pairs: Tensor) -> Tensor:
        return value_of(total, -1.0, raw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, *ctx.settings = inputs[:3]
        saved = inputs[3:]
        ctx.save_for_backward(weight, *saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, total, scale, *pairs = ctx.saved_tensors
        project, raw = ctx.settings
        own, slope, shift = reference.slopes(weight, total, grad, -1.0, project, raw)
        backward = tiles.pairs_op if weight.device.type == "cpu" else _gathered
        return first_order(backward, weight, scale, slope, own, *pairs, project, False, shift), *(None,) * 8


class NeighbourList(nn.Module):
    """R of class weights from the pairs whose angle was at most arccos(threshold) + skin when they were listed.

    The list is rebuilt when the two largest rotations since then exceed the skin in sum, so it holds every active pair
    whatever its age. That is decided on the host, so each step waits for a GPU once.
    """

    def __init__(self, threshold: float, skin: float) -> None:
        super().__init__()
        self.threshold, self.skin, self.rebuilds = threshold, skin, 0
        self.status = "no call yet"
        self._dtype: torch.dtype | None = None
        # Not buffers: these would be absent at times, and differ between ranks. Since the result does not depend on the
        # list's age, a run that is resumed, or moved to another device, and builds a new list continues unchanged.
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.order: Tensor | None = None
        self.bits: Tensor | None = None

    @property
    def pairs(self) -> int:
        """How many pairs are listed."""
        return 0 if self.first is None else self.first.numel()

    def forward(self, weight: Tensor, project: bool | Literal["raw"]) -> Tensor | None:
        """R [C] in the dtype of the arithmetic; None, with the reason in `status`, if all pairs are to be computed."""
        say_once()
        raw = project == "raw"
        weight = weight if raw else directions.in_range(weight)
        with torch.no_grad():
            scale = self._ready(weight.detach())
            if scale is None or self.first is None or self.second is None or self.order is None:
                return None
            listed = self.first, self.second, self.order
            total, *pairs = active_pairs(weight.detach(), scale, self.threshold, *listed, raw)
        return apply(Listed, weight, project is True, raw, total, scale, *pairs)

    def _ready(self, weight: Tensor) -> Tensor | None:
        """1 / |w| [C], after the list was rebuilt if necessary; None if there is no list."""
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
        """The sum of the two largest rotations since the list was built (radians); infinite without a list."""
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
        # Viewed as integers, which a cast of the module does not change: rounded rows would hide a rotation.
        whole = torch.int64 if scale.dtype == torch.float64 else torch.int32
        self.bits, self._dtype = (weight.to(scale.dtype) * scale[:, None]).view(whole), weight.dtype
