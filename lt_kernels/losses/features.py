"""The loss of features and class weights: of all of them, or of this rank's share of the classes or rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.linear import Normalize
from lt_kernels.margins import MixedTarget
from lt_kernels.ops import directions, prepare
from lt_kernels.ops.loss import evaluate, one_target
from lt_kernels.ops.ranks import placements
from lt_kernels.ops.ranks.sampling import Sampling
from lt_kernels.ops.sources import features as make_source


def of_features(
    loss: Any,
    rows: dict[str, Any],
    weights: dict[str, Any],
    *,
    cosine: bool,
    scale: float | None,
    group: Any,
    table: Tensor | None,
    sample: Sampling | None,
    changed: dict[str, Any] | None,
) -> Tensor:
    """`Loss.from_features` of rows "input", "target" and "sample_weight", and "linear_weight" and "linear_bias"."""
    if cosine:
        loss.of_cosines()
    if sample is not None:
        loss.sampleable()
    scale, like = loss.scale if loss.input_kind == "cosine" else scale, weights["linear_weight"]
    more: dict[str, Any] = {"cosine": cosine, "scale": scale, "table": table, "sample": sample, "changed": changed}
    dtensors = placements.there(*rows.values(), *weights.values())
    if group is not None or dtensors:
        loss.shardable()
    if dtensors and group is None:
        return placements.together(placements.group_of(like), like, _of_dtensors, loss, rows, weights, **more)
    if group is not None:
        return placements.together(group, like, _of_source, loss=loss, **rows, **weights, **more, group=group)
    if loss.needs_logits:
        given = {} if rows["sample_weight"] is None else {"sample_weight": rows["sample_weight"]}
        return loss(_logits(rows["input"], **weights, cosine=cosine, scale=scale), rows["target"], **given)
    return _of_source(loss, **rows, **weights, **more)


def _of_dtensors(
    loss: Any,
    rows: dict[str, Any],
    weights: dict[str, Any],
    *,
    scale: float | None,
    table: Tensor | None,
    changed: dict[str, Any] | None,
    **more: Any,
) -> Tensor:
    """The loss where classes or rows are sharded as DTensors say."""
    if table is None:
        classes = weights["linear_weight"].shape[0]
        table = loss.table_of_whole(rows["target"], classes, sample_weight=rows["sample_weight"])
    settings = loss.settings(table, scale, changed)
    return placements.through(partial(_of_source, loss), rows, weights, settings, **more)


def _of_source(
    loss: Any,
    input: Tensor,
    target: Tensor | MixedTarget,
    sample_weight: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    *,
    cosine: bool,
    scale: float | None = None,
    table: Tensor | None = None,
    sample: Sampling | None = None,
    changed: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    group: Any = None,
    ranks: Any = None,
) -> Tensor:
    """The loss of all classes and rows or of this rank's share of them."""
    checks.features(input, linear_weight, linear_bias, group is not None)
    normalize = Normalize.BOTH if cosine else Normalize.NOTHING
    if sample is not None and ranks is not None:
        raise ValueError("input must be the same on every rank where classes are sampled, got sharded rows")
    draw = None if sample is None else partial(sample.draw, target, loss.ignore_index)
    source = make_source(input, linear_weight, linear_bias, normalize, loss.margin, group, draw, ranks)
    shape = input.shape[0], source.classes
    if settings is None:
        table_of = loss.table if group is None else loss.table_of_whole
        table = table_of(target, source.classes, shape, sample_weight) if table is None else table
        plain = group is None and sample_weight is None and loss.softcap is None and changed is None
        if plain and prepare.simple(input, source.classes, target, table):
            terms = loss.prepared(input, source.classes, table)
            terms = terms if scale is None or scale == terms.scale else terms._replace(scale=scale)
            found = one_target(source, target, terms, loss.reduction, loss.average)
            if found is not None:
                return found
    given: dict[str, Any] = loss.settings(table, scale, changed) if settings is None else settings
    return evaluate(source, shape, target, sample_weight=sample_weight, **given)


def _logits(
    features: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, cosine: bool, scale: float | None
) -> Tensor:
    """The logits, for a loss that needs all of them."""
    checks.features(features, linear_weight, linear_bias)
    if not cosine:
        return F.linear(features, linear_weight, linear_bias)
    return directions.cosines(features, linear_weight) * (1.0 if scale is None else scale)
