"""From the statistics of each row to its loss and the slopes (derivatives of the loss), in one kernel.

Targets are not checked on a GPU: a target whose class is absent (offset -inf) has infinite loss.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_kernels.core.terms import Terms, loss_terms
from lt_kernels.triton.launch import blocks, launch
from lt_kernels.triton.numbers import number, part, times
from lt_kernels.triton.phi import SPHERE, focal_loss, phi, smoothed, target_above, weighed, with_z_loss

BLOCK = 256  # rows per program: a row takes only some hundred instructions


@triton.jit
def at_class(table, value, target, classes, like):
    """A per-class table at the targets, or `value` for all rows if there is no table."""
    if table is None:
        found = tl.full(like.shape, value, like.dtype)
    else:
        found = tl.load(table + tl.minimum(tl.maximum(target, 0), classes - 1))
    return found


@triton.jit
def row_loss(
    rest,
    top,
    own,
    rival,
    target,
    own_offset,
    norm,
    mean,
    total,
    share,
    weight,
    sample_weight,
    class_margin,
    class_smoothing,
    classes,
    order,
    scale,
    margin,
    instance,
    gamma,
    smoothing,
    z_loss,
    kind: tl.constexpr,
    guard: tl.constexpr,
    focal: tl.constexpr,
    squared: tl.constexpr,
):
    """(loss, d_rest, d_own, d_offset, d_norm, d_mean) of rows that are not ignored."""
    scale, instance = number(scale, own.dtype), number(instance, own.dtype)
    own_margin = at_class(class_margin, instance if kind == SPHERE else margin, target, classes, own)
    value, slope, norm_slope = phi(kind, own, rival, own_margin, order, instance, guard, norm)
    above = target_above(times(value, scale), own, own_offset, top, kind)
    amount = at_class(weight, 1.0, target, classes, own)
    loss, d_v, miss, hit = focal_loss(rest - above, amount, number(gamma, own.dtype), focal)
    d_u, d_mean = -d_v, tl.zeros_like(d_v)
    if mean is not None:
        part = at_class(class_smoothing, smoothing, target, classes, own)
        loss, d_v, d_u, d_mean = smoothed(loss, d_v, rest, above, miss, hit, mean, total, share, part)
    loss, d_v, d_u = with_z_loss(loss, d_v, d_u, rest, above, top, miss, hit, z_loss, squared)
    return weighed((loss, d_v, d_u * slope * scale, d_u, d_u * norm_slope * scale, d_mean), sample_weight)


@triton.jit(do_not_specialize=["rows", "ignore", "order"])
def margins_kernel(
    loss_out,  # [N]
    slopes_out,  # [5, N]
    rest,  # [N], as all up to sample_weight; from own_offset on each may be absent
    top,
    own,
    rival,
    target,
    own_offset,
    norm,
    mean,
    total,
    share,
    sample_weight,
    weight,  # [C], as the next two; each may be absent
    class_margin,
    class_smoothing,
    rows,
    classes,
    order,
    ignore,
    scale: tl.float64,
    margin: tl.float64,
    instance: tl.float64,
    gamma: tl.float64,
    smoothing: tl.float64,
    z_loss: tl.float64,
    kind: tl.constexpr,
    guard: tl.constexpr,
    focal: tl.constexpr,
    squared: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = row < rows
    label = tl.load(target + row, mask=inside, other=ignore)
    found = row_loss(
        part(rest, row, inside),
        part(top, row, inside),
        part(own, row, inside),
        part(rival, row, inside),
        label,
        part(own_offset, row, inside),
        part(norm, row, inside),
        part(mean, row, inside),
        part(total, row, inside),
        part(share, row, inside),
        weight,
        part(sample_weight, row, inside),
        class_margin,
        class_smoothing,
        classes,
        order,
        scale,
        margin,
        instance,
        gamma,
        smoothing,
        z_loss,
        kind,
        guard,
        focal,
        squared,
    )
    counts = label != ignore
    tl.store(loss_out + row, tl.where(counts, found[0], 0.0), mask=inside)
    for k in tl.static_range(5):
        tl.store(slopes_out + k * rows.to(tl.int64) + row, tl.where(counts, found[k + 1], 0.0), mask=inside)


def loss_settings(t: Terms) -> dict[str, Any]:
    """The arguments of a kernel that calls `row_loss`: tables, numbers, and compile-time constants."""
    tables = {
        "weight": t.weight,
        "sample_weight": t.sample_weight,
        "class_margin": t.class_margin,
        "class_smoothing": t.class_smoothing,
    }
    tables = {name: None if table is None else table.contiguous() for name, table in tables.items()}
    numbers = {"scale": t.scale, "margin": t.margin, "instance": t.instance, "gamma": t.gamma, "smoothing": t.smoothing}
    numbers["z_loss"] = t.z_loss
    kinds = {"kind": t.kind, "guard": t.guard, "focal": t.gamma != 0, "squared": t.z_loss != 0}
    return {**tables, **numbers, **kinds, "order": int(t.margin), "ignore": t.ignore_index}


def margins(
    rest: Tensor,
    top: Tensor,
    own: Tensor,
    rival: Tensor,
    target: Tensor,
    own_offset: Tensor | None,
    norm: Tensor | None,
    mean: Tensor | None,
    total: Tensor | None,
    share: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """loss [N], and its slopes (d_rest, d_own, d_offset, d_norm, d_mean) as [5, N], from the statistics of each row."""
    rows, t = rest.shape[0], loss_terms(*settings)
    if mean is None or total is None or share is None:
        mean = total = share = None
    vectors = {
        "rest": rest,
        "top": top,
        "own": own,
        "rival": rival,
        "target": target,
        "own_offset": own_offset,
        "norm": norm,
    }
    vectors |= {"mean": mean, "total": total, "share": share}
    given = {name: None if vector is None else vector.contiguous() for name, vector in vectors.items()}
    loss, slopes = torch.empty_like(given["rest"]), rest.new_empty(5, rows)
    classes = next((table.shape[0] for table in (t.weight, t.class_margin, t.class_smoothing) if table is not None), 1)
    sizes = {"rows": rows, "classes": classes, "block": BLOCK}
    arguments = {"loss_out": loss, "slopes_out": slopes, **given, **loss_settings(t), **sizes}
    launch(margins_kernel, (blocks(rows, BLOCK),), arguments)
    return loss, slopes
