"""The tensors of a case: drawn from its seed, laid out in memory as it says, with NaN in every gap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuzz.case import INDICES, Case

INF = math.inf


@dataclass
class Problem:
    """What a case is called with. `leaves` take gradients; `target` is (first, second, lam) where it is mixed."""

    case: Case
    leaves: dict[str, Tensor]
    target: Any
    weight: Tensor | None
    counts: Tensor
    smoothing: Any
    absent: Tensor  # [C], which classes are not there
    flat: Any  # the target as rows: what judge and eager take
    by_row: Tensor | None = None  # a weight for each row, of the shape of class indices
    flat_weight: Tensor | None = None  # the same for flat rows, moved as the target is
    frozen: dict[str, Tensor] = field(default_factory=dict)  # given like leaves, without a gradient
    seen: dict[str, Tensor] = field(default_factory=dict)  # the judge's own logits or cosines


class Source:
    """Random tensors of one seed, made in float64."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def below(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def one(self, high: int) -> int:
        return int(self.below(high, 1))


def laid_out(value: Tensor, layout: str) -> Tensor:
    """The same numbers in another layout; what lies between them is NaN."""
    if layout == "transposed" and value.ndim > 1:
        return value.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "channels last" and value.ndim > 2:
        return value.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "behind":
        return torch.cat((value.new_full((1,), math.nan), value.reshape(-1)))[1:].view(value.shape)
    if layout == "expanded" and value.ndim > 1 and len(value):
        return value[:1].contiguous().expand(value.shape)
    if layout == "apart" and value.ndim > 1:
        room = value.new_full((*value.shape[:-1], value.shape[-1] + 3), math.nan)
        room[..., : value.shape[-1]] = value
        return room[..., : value.shape[-1]]
    if layout == "strided" and value.ndim:
        room = value.new_full((*value.shape[:-1], 2 * value.shape[-1]), math.nan)
        room[..., ::2] = value
        return room[..., ::2]
    return value.contiguous()


def shape_of(case: Case) -> tuple[int, ...]:
    """The input's shape."""
    last = case.classes if case.takes_logits else case.features
    if case.single:
        return (last,)
    return (case.rows, last, *case.places) if case.takes_logits else (case.rows, *case.places, last)


def places_of(case: Case) -> tuple[int, ...]:
    """The shape of class indices."""
    return () if case.single else (case.rows, *case.places)


def indices(case: Case, source: Source, absent: Tensor) -> Tensor:
    """Class indices of classes that are there, some of them ignored."""
    there = (~absent).nonzero()[:, 0]
    most = len(there) if INDICES[case.index].itemsize > 1 else max(1, int((there < 128).sum()))
    target = there[source.below(most, *places_of(case))]
    if case.ignored == "all":
        return torch.full_like(target, case.ignore_index)
    if case.ignored == "some":
        target = torch.where(source.uniform(*target.shape) < 0.3, case.ignore_index, target)
    return target


def special_rows(case: Case, value: Tensor, source: Source, absent: Tensor) -> Tensor:
    """The input with what is special in it."""
    rows = value.movedim(1, -1) if case.takes_logits and value.ndim > 2 else value
    size = rows.shape[-1]
    rows = rows.reshape(-1, size)
    if case.special in ("nan", "inf", "-inf") and len(rows):
        there = (~absent).nonzero()[:, 0] if case.takes_logits else torch.arange(size)
        rows[source.one(len(rows)), there[source.one(len(there))]] = float(case.special)
    elif case.special == "equal":
        rows = torch.full_like(rows, 0.5)
    elif case.special == "zero row" and len(rows):
        rows[source.one(len(rows))] = 0.0
    elif case.special == "long":
        rows = rows * 3e4 / rows.abs().amax().clamp_min(1e-300) if rows.numel() else rows
    if case.shift:
        times = 1 + source.below(4, len(rows), 1) if case.shifts else torch.ones(len(rows), 1)
        rows = rows + case.shift * times
    if case.takes_logits and value.ndim > 2:
        return rows.reshape(value.shape[0], *value.shape[2:], size).movedim(-1, 1).contiguous()
    return rows.reshape(value.shape)


def input_of(case: Case, source: Source, absent: Tensor, bounded: bool) -> Tensor:
    """Logits, cosines (bounded) or features, in float64."""
    value = source.normal(*shape_of(case))
    value = 0.95 * torch.tanh(value) if bounded else case.spread * value
    return special_rows(case, value, source, absent)


def offset_of(case: Case, source: Source, absent: Tensor) -> Tensor | None:
    """The offset in the form that the case names; classes that are absent are so for every row."""
    if case.offset == "none":
        return None
    c = case.classes
    shape = {"class": (c,), "row": shape_of(case), "target": (c, c)}[case.offset]
    if not case.takes_logits and case.offset == "row":
        shape = (c,) if case.single else (case.rows, c)
    value = 2 * source.normal(*shape)
    axis = 1 if case.offset == "row" and len(shape) > 1 else -1
    value.movedim(axis, -1)[..., absent] = -INF
    if case.rows == c and len(shape) == 2:  # which of the two it is must be said
        return value[None] if case.offset == "target" else value[:, None]
    return value


def soft_targets(case: Case, source: Source, absent: Tensor) -> Tensor:
    """Probabilities of the input's shape, 0 where a class is not there."""
    shape = shape_of(case) if case.takes_logits else (*places_of(case), case.classes)
    axis = 1 if len(shape) > 1 and case.takes_logits else -1
    value = torch.softmax(2 * source.normal(*shape).movedim(axis, -1).masked_fill(absent, -INF), -1)
    return value.movedim(-1, axis).contiguous().to(case.kind)


def target_of(case: Case, source: Source, absent: Tensor) -> Any:
    """What the judge takes for a target, in the shape that users give."""
    if case.target == "probability":
        return soft_targets(case, source, absent)
    first = indices(case, source, absent)
    if case.target == "index":
        return first
    lam = source.uniform(case.rows).to(case.kind) if case.target == "mixed rows" else 0.25 + 0.5 * source.one(2)
    return first, indices(case, source, absent), lam


def as_rows(case: Case, target: Any) -> Any:
    """The target of flat rows, wide."""
    if isinstance(target, tuple):
        first, second, lam = target
        if isinstance(lam, Tensor):
            lam = lam.double().reshape(-1, *(1,) * len(case.places)).expand(places_of(case)).reshape(-1)
        return first.reshape(-1), second.reshape(-1), lam
    if target.is_floating_point():
        if not case.takes_logits:
            return target.reshape(-1, case.classes).double()
        rows = target if target.ndim > 1 else target[None]
        return rows.movedim(1, -1).reshape(-1, case.classes).double()
    return target.reshape(-1)


def moved(case: Case, value: Tensor, none: float) -> Tensor:
    """Values that stand `ahead` places further on, `none` where there is no such place."""
    found, width = torch.full_like(value, none), value.shape[-1] - case.ahead if value.ndim else 0
    if width > 0:
        found[..., :width] = value[..., case.ahead :]
    return found


def counted(case: Case, target: Any, by_row: Tensor | None) -> Any:
    """The target as it is judged: moved, and ignored where a row has no weight."""
    if isinstance(target, tuple):
        return *(counted(case, one, by_row) for one in target[:2]), target[2]
    if target.is_floating_point():
        return target
    found = moved(case, target, case.ignore_index) if case.ahead else target
    return found if by_row is None else torch.where(by_row == 0, case.ignore_index, found)


def row_weights(case: Case, source: Source) -> Tensor | None:
    """A weight for each row; some are 0."""
    if case.rows_weight == "none":
        return None
    found = source.uniform(*places_of(case)) + 0.1
    return torch.where(source.uniform(*places_of(case)) < 0.3, 0.0, found) if case.rows_weight == "zeros" else found


def narrow(case: Case, target: Any) -> Any:
    """The indices in the dtype that the case names."""
    if isinstance(target, tuple):
        return narrow(case, target[0]), narrow(case, target[1]), target[2]
    return target if target.is_floating_point() else target.to(INDICES[case.index])


def leaves_of(case: Case, source: Source, absent: Tensor, bounded: bool) -> dict[str, Tensor]:
    """What takes gradients, in float64."""
    found: dict[str, Tensor] = {}
    if case.function != "repulsion":
        found["input"] = input_of(case, source, absent, bounded)
    if not case.takes_logits:
        weight = source.normal(case.classes, case.features)
        if case.special == "zero row":
            weight[source.one(len(weight))] = 0.0
        if case.special == "long" and "input" not in found:
            weight = weight * 3e4 / weight.abs().amax()
        found["linear_weight"] = weight
    if case.bias:
        found["linear_bias"] = source.normal(case.classes)
    if case.loss == "EstimatedOffsetLoss" and case.function == "linear_head":
        found["centers"] = source.normal(case.classes, case.features)
    if (offset := offset_of(case, source, absent)) is not None:
        found["offset"] = offset
    return found


def build(case: Case, bounded: bool) -> Problem:
    """All tensors of a case; `bounded` where the input stands for cosines."""
    source = Source(case.seed)
    absent = torch.zeros(case.classes, dtype=torch.bool)
    if case.absent:
        absent = source.uniform(case.classes) < 0.4
        absent[source.one(case.classes)] = False
    counts = (1 + source.below(500, case.classes)).double()
    leaves = leaves_of(case, source, absent, bounded)
    target = target_of(case, source, absent)
    weight = None
    if case.weight != "none":
        weight = source.uniform(case.classes) + 0.1
        weight[source.uniform(case.classes) < 0.4] *= 0.0 if case.weight == "zeros" else 1.0
        weight = weight.to(torch.float64 if case.weight == "wide" else case.kind)
    smoothing: Any = case.smoothing
    if smoothing == "classes":
        smoothing = source.uniform(case.classes).to(case.kind)
    ready = {name: laid_out(value.to(case.kind), case.layout) for name, value in leaves.items()}
    fixed = {}
    if "offset" in ready and not case.learned:
        fixed["offset"] = ready.pop("offset")
    if case.frozen and "linear_weight" in ready and len(ready) > 1:
        fixed["linear_weight"] = ready.pop("linear_weight")
    by_row = row_weights(case, source)
    by_row = None if by_row is None else by_row.to(case.kind)
    ahead = by_row if by_row is None or not case.ahead else moved(case, by_row, 0.0)
    flat = as_rows(case, counted(case, target, ahead))
    rows = None if ahead is None else ahead.double().reshape(-1)
    given = narrow(case, target), weight, counts, smoothing, absent, flat
    return Problem(case, ready, *given, by_row, rows, fixed)
