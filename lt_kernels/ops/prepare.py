"""From the public functions' arguments to `Terms`: checks, dtypes, tables."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.terms import Phi, Terms
from lt_kernels.margins import Margin
from lt_kernels.ops import calling


def as_rows(logits: Tensor) -> Tensor:
    """[C], [N, C] or [N, C, d1, ...] as rows of C."""
    if logits.ndim < 3:
        return logits if logits.ndim == 2 else logits[None]
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def _offset_table(offset: Tensor, shape: tuple[int, ...], classes: int) -> tuple[Tensor, bool]:
    """The offset as [1, C], [N, C] or [C, C], and whether its rows are the targets' classes."""
    checks.floating("offset", offset)
    given, rows = tuple(offset.shape), shape[0] if len(shape) > 1 else 1
    if given == (classes,):
        return offset.unsqueeze(0), False
    if classes == 1 and given in ((1, 1), (1, 1, 1)):  # one number, whatever its row stands for
        return offset.reshape(1, 1), False
    if given == (1, classes, classes):
        return offset[0], True
    if given == (rows, 1, classes) and len(shape) == 2:
        return offset[:, 0], False
    per_row, per_class = given == shape, given == (classes, classes)
    if per_row and per_class:
        raise ValueError(
            f"offset has shape {list(given)}, which for {rows} rows of {classes} classes may be per row or per target "
            f"class: give it as [{rows}, 1, {classes}] (per row) or [1, {classes}, {classes}] (per target class)"
        )
    if per_class:
        return offset, True
    if per_row:
        return offset.movedim(1, -1).reshape(-1, classes) if offset.ndim > 1 else offset[None], False
    raise ValueError(
        f"offset must have shape [{classes}], {list(shape)} (per row) or [{classes}, {classes}] (per target class), "
        f"got {list(given)}"
    )


def _offset_row(target: Tensor | None) -> Tensor:
    """The table's row for each row: its target; as a copy for a compiled graph, which takes no tensor twice."""
    if target is None:
        raise ValueError("offset per target class [C, C] needs class indices as target, got probabilities")
    return target.clone() if torch.compiler.is_compiling() else target


def _smoothing(value: float | Tensor, classes: int, like: Tensor) -> tuple[float, Tensor | None]:
    if isinstance(value, Tensor) and value.ndim:
        return 1.0, checks.shares("label_smoothing", checks.vector("label_smoothing", value, classes, like))
    return checks.number("label_smoothing", value, 0.0, 1.0), None


class Ahead:
    """Targets that stand `shift` places further on in the last of their dimensions, as the next token's does."""

    def __init__(self, shift: int, places: tuple[int, ...], dealt: bool) -> None:
        self.shift = checks.whole("shift", shift, 0)
        if self.shift and (not places or (dealt and len(places) == 1)):
            where = "whose rows are sharded over ranks" if places else "without a dimension"
            raise ValueError(f"shift must be 0 for targets {list(places)} {where}, got {shift}")

    def of(self, value: Tensor, none: int) -> Tensor:
        """The values for each place, `none` at the last ones."""
        if not self.shift:
            return value
        return F.pad(value[..., self.shift :], (0, min(self.shift, value.shape[-1])), value=none)

    def refuse(self, target: Tensor) -> None:
        """Raise for probabilities, which are not moved."""
        if self.shift:
            raise ValueError(f"shift must be 0 with probabilities as target {list(target.shape)}, got {self.shift}")


def sample_weights(value: Tensor | None, places: tuple[int, ...], like: Tensor, ahead: Ahead) -> Tensor | None:
    """The weights of the rows, flat [N], in the dtype of the arithmetic."""
    if value is None:
        return None
    checks.same_device("sample_weight", checks.floating("sample_weight", value), like)
    if tuple(value.shape) != places:
        raise ValueError(f"sample_weight must have shape {list(places)}, one number a row, got {list(value.shape)}")
    if value.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            "sample_weight must not require a gradient, which it has not here: multiply the losses of reduction='none'"
        )
    return ahead.of(value, 0).reshape(-1).to(accumulate_type(like.dtype))


def _shares(
    table: Tensor | None, weight: Tensor | None, classes: int, like: Tensor, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What smoothing gives to each class that is there, w_c / (classes there), and the sum of it for each table row."""
    if table is None:
        share = like.new_full((1, classes), 1 / classes, dtype=kind)
    else:
        there = (table.detach() != -torch.inf).to(kind)
        share = there / there.sum(1, keepdim=True)
    share = share if weight is None else share * weight
    return share, share.sum(1)


def terms(
    like: Tensor,
    shape: tuple[int, ...],
    classes: int,
    target: Tensor | None,
    *,
    weight: Tensor | None,
    offset: Tensor | None,
    focal_gamma: float,
    label_smoothing: float | Tensor,
    ignore_index: Any,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    scale: float = 1.0,
    margin: Margin | None = None,
    class_margin: Tensor | None = None,
) -> Terms:
    """Checked settings for logits of `shape` with class indices `target` (flat; None for probability targets)."""
    kind, ignore_index = accumulate_type(like.dtype), checks.ignored("ignore_index", ignore_index)
    gamma = checks.number("focal_gamma", focal_gamma, 0.0)
    smoothing, class_smoothing = _smoothing(label_smoothing, classes, like)
    if weight is not None:
        weight = checks.vector("weight", weight, classes, like).to(kind)
    table = row = share = total = None
    if offset is not None:
        table, per_target = _offset_table(offset, shape, classes)
        checks.same_device("offset", table, like)
        table = table if table.dtype == kind else table.to(kind)
        if per_target and target is not None and target.shape[0] == 0:
            table, per_target = table[:1], False  # no row chooses
        row = _offset_row(target) if per_target else None
    if smoothing:
        share, total = _shares(table, weight, classes, like, kind)
    found = Terms(
        table,
        row,
        share,
        total,
        weight,
        sample_weight,
        scale=scale,
        gamma=gamma,
        z_loss=checks.number("z_loss", z_loss, 0.0),
        smoothing=smoothing,
        ignore_index=ignore_index,
        class_smoothing=None if class_smoothing is None else class_smoothing.to(kind),
    )
    return found if margin is None else with_margin(found, margin, class_margin, classes, like, kind)


def simple(like: Tensor, classes: int, target: Any, *tables: Tensor | None) -> bool:
    """Whether a call takes the direct way with one class index for each row of `like` and tables [C] alone.

    What holds then needs no further check; a call for which it does not hold is checked argument by argument.
    """
    if not calling.direct(like) or like.ndim != 2 or classes == 0 or like.dtype not in checks.KINDS:
        return False
    device = like.device
    if type(target) is not Tensor or target.dtype is not torch.int64 or target.shape != like.shape[:1]:
        return False
    for table in tables:
        if table is not None and not (
            calling.plain(table)
            and table.dtype in checks.KINDS
            and table.shape == (classes,)
            and table.device == device
            and _there(table)
        ):
            return False
    return target.device == device and _there(like) and _there(target)


def _there(tensor: Tensor) -> bool:
    """Whether a plain tensor has its numbers, as `checks.released` finds out for any."""
    return tensor.layout is torch.strided and (tensor.data_ptr() != 0 or tensor.numel() == 0)


def simple_terms(
    kind: torch.dtype, weight: Tensor | None, offset: Tensor | None, scale: float, gamma: float, ignore_index: int
) -> Terms:
    """The terms of a `simple` call whose arithmetic is of this dtype, without a margin and without smoothing."""
    offset = None if offset is None else offset.to(kind).unsqueeze(0)
    weight = None if weight is None else weight.to(kind)
    return Terms(offset, None, None, None, weight, scale=scale, gamma=gamma, ignore_index=ignore_index)


class Recipe:
    """The terms of one loss for inputs of one dtype and width: settings are checked once, tables are read at each call.

    So values that were written into a table count, however they were written. The offset may differ at each call.
    """

    def __init__(
        self, key: tuple[Any, ...], tables: tuple[Any, ...], like: Tensor, classes: int, settings: dict[str, Any]
    ) -> None:
        self.key, self.tables, self.dtype = key, tables, accumulate_type(like.dtype)
        self.checked = terms(like, (2, classes), classes, None, **settings)

    def holds(self, tables: tuple[Any, ...]) -> bool:
        """Whether these are the very tables that it was made of, not only equal ones."""
        return all(one is other for one, other in zip(self.tables, tables))

    def terms(self, offset: Tensor | None) -> Terms:
        """The terms with what the tables hold now, and this offset [C]."""
        kind, checked = self.dtype, self.checked
        weight, margins, smoothing, _ = self.tables
        offset = None if offset is None else offset.to(kind)[None]
        weight = None if weight is None else weight.to(kind)
        share, total = checked.mean_weight, checked.total
        if share is not None and (offset is not None or weight is not None):
            share, total = _shares(offset, weight, share.shape[1], share, kind)
        margins = None if margins is None else margins.to(kind).expand_as(checked.class_margin)
        smoothing = None if smoothing is None else smoothing.to(kind)
        return Terms(offset, None, share, total, weight, None, margins, smoothing, *checked[8:])


def with_margin(
    found: Terms, margin: Margin, class_margin: Tensor | None, classes: int, like: Tensor, kind: torch.dtype
) -> Terms:
    per_class = margin.per_class if class_margin is None else class_margin
    if per_class is not None and margin.kind == Phi.SPHERE:  # one annealing for all classes
        per_class = per_class.reshape(1).expand(classes)
    if per_class is not None:
        per_class = checks.vector("margin", per_class.to(like.device), classes, like).to(kind)
    return found._replace(
        class_margin=per_class,
        kind=int(margin.kind),
        margin=margin.value,
        instance=margin.strength,
        guard=margin.fallback,
    )


def is_probability(target: Any) -> bool:
    """Whether a target holds class probabilities (floating point) and not indices."""
    return isinstance(target, Tensor) and target.is_floating_point()


def probability_terms(like: Tensor, shape: tuple[int, ...], classes: int, target: Tensor, **settings: Any) -> Terms:
    """Terms whose shares are the (smoothed, weighted) probabilities [N, C] themselves: loss = total * rest - mean."""
    weight, settings["weight"] = settings["weight"], None
    found = terms(like, shape, classes, None, **settings)
    kind = accumulate_type(like.dtype)
    share = target.to(kind)
    if found.mean_weight is not None:
        share = (1 - found.smoothing) * share + found.smoothing * found.mean_weight
    if weight is not None:
        share = share * checks.vector("weight", weight, classes, like).to(kind)
    if found.offset is not None and checks.readable(found.offset, share):
        _check_mass(found.offset.detach() == -torch.inf, share)
    return found._replace(mean_weight=share, total=share.sum(1))


def _check_mass(absent: Tensor, share: Tensor) -> None:
    if bool(absent.any()) and bool((absent & (share != 0)).any()):
        where = int((absent & (share != 0)).nonzero()[0, 1])
        raise ValueError(
            f"offset is -inf for class {where}, to which target gives a probability above 0: "
            "a class that is not there cannot have one"
        )
