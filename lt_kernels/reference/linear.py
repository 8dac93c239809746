"""Row statistics from features and class weights, with one slab of logits at a time (docs/math.md, section 5).

The forward and the backward pass are loops over the slabs. For each slab the library multiplies, and the operators of
`rows` do the rest, so this works on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lt_kernels.core.linear import Normalize, Problem, blocks
from lt_kernels.core.numbers import (
    accumulate_type,
    as_they_are,
    cap_,
    cap_slope_,
    finite,
    inverse_norm,
    product_type,
)


def _product(problem: Problem, rows: slice, classes: slice) -> Tensor:
    """The logits of a block: input[rows] @ weight[classes].T (+ bias)."""
    kind, left, right = product_type(problem.input), problem.input[rows], problem.weight[classes]
    bias = None if problem.bias is None else problem.bias[classes].to(kind)
    if (left.is_cuda or left.is_meta) and left.dtype == right.dtype != kind:  # float16 products with float32 sums
        logits = torch.mm(left, right.T, out_dtype=kind)
        return logits if bias is None else logits.add_(bias)
    left, right = left.to(kind), right.to(kind)
    return left @ right.T if bias is None else torch.addmm(bias, left, right.T)


def logits_type(problem: Problem) -> torch.dtype:
    """The dtype of a block of logits: that of the products, or once they are capped that of the arithmetic."""
    return accumulate_type(problem.input.dtype) if problem.softcap else product_type(problem.input)


def _merge(first: tuple[Tensor, ...] | None, second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The statistics of the union of two disjoint sets of classes."""
    if first is None:
        return second
    rest, own, rival, mean, top, shares = zip(first, second, strict=True)
    both = torch.maximum(*top)
    down = [finite(one) - finite(both) for one in top]
    rest = torch.logaddexp(rest[0] + down[0], rest[1] + down[1])
    if mean[0].numel():
        mean = [one + step * share for one, step, share in zip(mean, down, shares, strict=True)]
    return rest, torch.maximum(*own), torch.maximum(*rival), mean[0] + mean[1], both, shares[0] + shares[1]


def linear_forward(*inputs: object) -> tuple[Tensor, ...]:
    """(rest, own, rival, mean, top, shares, kept logits, row scale, column scale); empty where not used."""
    return by_slabs(Problem(*inputs[:-1]), bool(inputs[-1]), inverse_norm)  # type: ignore[arg-type]


def by_slabs(
    p: Problem,
    keep: bool,
    norm: Callable[[Tensor], Tensor],
    product: Callable[[Problem, slice, slice], Tensor] = _product,
) -> tuple[Tensor, ...]:
    """The results of linear_forward; `norm` and `product` may be replaced by faster functions for a device."""
    rows_forward = torch.ops.lt_kernels.rows_forward.default
    kept = p.input.new_empty(0, dtype=logits_type(p))
    parts: dict[int, tuple[Tensor, ...]] = {}
    with as_they_are(p.input.device):
        row_scale = norm(p.input) if p.normalize == Normalize.BOTH else None
        column_scale = norm(p.weight) if p.normalize >= Normalize.CLASSES else None
        for classes in p.class_slabs():
            for rows in p.row_slabs():
                logits = cap_(product(p, rows, classes), p.softcap)
                part = rows_forward(
                    logits,
                    p.target[rows],
                    p.scale,
                    None if row_scale is None else row_scale[rows],
                    None if column_scale is None else column_scale[classes],
                    *p.tables(rows, classes),
                    p.start + classes.start,
                    p.classes,
                    p.ignore_index,
                )
                parts[rows.start] = _merge(parts.get(rows.start), part)
                kept = logits if keep else kept
    found = list(parts.values())
    numbers = [torch.cat(column) for column in zip(*found, strict=True)] if len(found) > 1 else list(found[0])
    norms = (numbers[0].new_empty(0) if scale is None else scale for scale in (row_scale, column_scale))
    return *numbers, kept, *norms


class Backward:
    """The gradients of one problem, summed slab by slab."""

    def __init__(
        self, problem: Problem, saved: tuple[Tensor, ...], slopes: tuple[Tensor | None, ...], wants: tuple[bool, ...]
    ) -> None:
        p, (self.want_input, self.want_weight, self.want_bias, self.want_offset) = problem, wants
        self.problem, self.slopes = problem, slopes
        self.kept, row_scale, column_scale, self.rest, self.top = saved
        self.input = self.operand(p.input)
        self.weight = p.weight  # of the current slab of classes, as its products take them
        self.row_scale = row_scale if p.normalize == Normalize.BOTH else None
        self.column_scale = column_scale if p.normalize >= Normalize.CLASSES else None
        self.sums = accumulate_type(p.input.dtype)
        rows, size = p.input.shape
        classes = p.weight.shape[0]
        # The first slab of classes sets it, further ones are added; a single slab needs no wider dtype for the sum.
        alone = p.class_slab >= classes and product_type(p.input) == p.input.dtype and self.row_scale is None
        kind = p.input.dtype if alone else self.sums
        self.d_input = p.input.new_empty((rows, size) if self.want_input else (0,), dtype=kind)
        self.d_weight = p.weight.new_empty(classes, size) if self.want_weight else p.weight.new_empty(0)
        self.d_bias = self.zeros(classes) if self.want_bias else self.zeros(0)
        self.d_offset = self.zeros(*p.offset.shape) if self.want_offset and p.offset is not None else self.zeros(0)

    def zeros(self, *sizes: int) -> Tensor:
        """Zeros in the dtype of the sums."""
        return self.problem.input.new_zeros(sizes, dtype=self.sums)

    def logits(self, rows: slice, classes: slice) -> Tensor:
        """The logits of a block, computed again."""
        return cap_(_product(self.problem, rows, classes), self.problem.softcap)

    def slab(self, rows: slice, classes: slice) -> Tensor:
        """The gradient of the block's raw product; also adds to the gradient of the offset."""
        p = self.problem
        logits = self.kept[rows, classes] if self.kept.numel() else self.logits(rows, classes)
        slopes = (None if slope is None else slope[rows] for slope in self.slopes)
        d_logits, d_table = torch.ops.lt_kernels.rows_backward.default(
            logits,
            p.target[rows],
            p.scale,
            None if self.row_scale is None else self.row_scale[rows],
            None if self.column_scale is None else self.column_scale[classes],
            *p.tables(rows, classes),
            p.start + classes.start,
            p.classes,
            p.ignore_index,
            self.rest[rows],
            self.top[rows],
            *slopes,
            None,
            self.want_offset,
        )
        if self.want_offset:
            p.cut(self.d_offset, rows, classes).add_(d_table)  # type: ignore[union-attr]
        return self.before_cap(d_logits, logits)

    def before_cap(self, d_logits: Tensor, logits: Tensor) -> Tensor:
        """The gradient of what was capped, from that of the capped logits of a block, which are not needed again."""
        cap = self.problem.softcap
        if not cap:
            return d_logits
        slope = cap_slope_(logits.clone() if self.kept.numel() else logits, cap)
        return d_logits.mul_(slope).to(product_type(self.problem.input))

    def classes(self, classes: slice) -> None:
        """All gradients of one slab of classes."""
        p, kind = self.problem, product_type(self.problem.input)
        final = self.d_weight[classes] if self.want_weight else self.d_weight
        # A single product, which is summed in float32 internally, needs no wider dtype.
        once = p.weight.dtype == kind and p.row_slab >= p.input.shape[0] and self.column_scale is None
        own = final if once or p.weight.dtype == self.sums else torch.empty_like(final, dtype=self.sums)
        self.weight = self.operand(p.weight[classes])
        for rows in p.row_slabs():
            self.block(rows, classes, own)
        self.finish_weight(own, classes, final)

    def block(self, rows: slice, classes: slice, own: Tensor) -> None:
        """Add the gradients of one block; `own` is the sum for its class weights."""
        d_logits = self.slab(rows, classes)
        if self.want_input:
            self.add_product(self.d_input[rows], d_logits, self.weight, classes.start == 0)
        if self.want_weight:
            self.add_product(own, d_logits.T, self.input[rows], rows.start == 0)
        if self.want_bias:
            self.d_bias[classes].add_(self.column_sum(d_logits))

    def finish_weight(self, own: Tensor, classes: slice, final: Tensor) -> None:
        """The gradient of one slab of class weights from its sum."""
        if self.want_weight:
            scale = None if self.column_scale is None else self.column_scale[classes]
            self.finish(own, self.problem.weight[classes], scale, final)

    def operand(self, rows: Tensor) -> Tensor:
        """Features or class weights as they are multiplied: in the dtype of the products."""
        return rows.to(product_type(self.problem.input))

    def column_sum(self, d_logits: Tensor) -> Tensor:
        """The gradient of the bias from a block."""
        return d_logits.sum(0, dtype=self.sums)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """total = left @ right the first time, += afterwards; the sum keeps its own, wider dtype."""
        add_product(total, left, right, first)

    def finish(self, total: Tensor, rows: Tensor, scale: Tensor | None, final: Tensor) -> None:
        """Write a summed gradient to `final`, orthogonal to `rows` if these were normalised."""
        project_rows(total, rows, scale)
        if total is not final:
            final.copy_(total)

    def run(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(d_input, d_weight, d_bias, d_offset); empty where not wanted."""
        with as_they_are(self.problem.input.device):
            for classes in self.problem.class_slabs():
                self.classes(classes)
            return self.found()

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients once every block has been added."""
        p, d_input = self.problem, self.d_input
        if self.want_input:
            d_input = d_input if d_input.dtype == p.input.dtype else p.input.new_empty(p.input.shape)
            self.finish(self.d_input, p.input, self.row_scale, d_input)
        d_bias = self.d_bias if p.bias is None else self.d_bias.to(p.bias.dtype)
        return d_input.to(p.input.dtype), self.d_weight, d_bias, self.d_offset


def add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total = left @ right the first time, += afterwards; the sum keeps its own, wider dtype."""
    if total.dtype != left.dtype and (left.is_cuda or left.is_meta):  # a GPU sums in float32 internally: keep that
        arguments = {"out_dtype": total.dtype, "out": total}
        torch.mm(left, right, **arguments) if first else torch.addmm(total, left, right, **arguments)
    elif total.dtype != left.dtype:
        total.copy_(left @ right) if first else total.add_(left @ right)
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)


def along(gradient: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """The coefficients [N, 1] of `rows` in the parallel component of a gradient; `scale` [N] is 1 / |row|."""
    return ((gradient * rows).sum(1) * scale * scale)[:, None]


def project_rows(gradient: Tensor, rows: Tensor, scale: Tensor | None, chunk: int = 512) -> None:
    """Make each row of `gradient` orthogonal to `rows`, in place: the derivative of the normalisation."""
    if scale is None:
        return
    for part in blocks(rows.shape[0], chunk):
        line = rows[part].to(gradient.dtype)
        gradient[part].addcmul_(line, along(gradient[part], line, scale[part]), value=-1)


def linear_backward(*inputs: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the statistics.

    The inputs are the problem, kept logits, both scales, rest, top, four slopes (or None), and which are wanted.
    """
    shared, rest = inputs[: len(Problem._fields)], inputs[len(Problem._fields) :]
    return Backward(Problem(*shared), rest[:5], rest[5:9], rest[9]).run()  # type: ignore[arg-type]
