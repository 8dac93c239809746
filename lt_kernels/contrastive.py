"""Contrastive terms over keys that have a class; the losses with such a second part are in `lt_kernels.losses`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type, autocast
from lt_kernels.core.terms import Reduction
from lt_kernels.ops import directions, keys
from lt_kernels.ops.ranks import batches, placements
from lt_kernels.ops.ranks.dealing import ranks_of

__all__ = ["balanced_contrastive", "class_mean_cross_entropy"]


def class_indices(target: Any, classes: int, rows: int, like: Tensor) -> Tensor:
    """Class indices [N], all in 0 to C - 1: a contrastive term has no row to ignore, nor one of two classes."""
    return _indices("target", target, rows, 0, classes, like)


def _indices(name: str, value: Any, rows: int, low: int, size: int, like: Tensor) -> Tensor:
    """Indices [M] in low to size - 1, where -1 stands for none."""
    value = checks.indices(name, value, (rows,), like)
    if checks.readable(value) and value.numel():
        least, most = (int(end) for end in value.aminmax())
        if least < low or most >= size:
            raise IndexError(f"{name} must be in {low} to {size - 1}, got {least} to {most}")
    return value


def matrix(name: str, value: Any, size: int | None = None) -> Tensor:
    """Rows [M, d]."""
    checks.floating(name, value)
    if value.ndim != 2 or value.shape[0] == 0 or (size is not None and value.shape[1] != size):
        raise ValueError(f"{name} must be [M, {'d' if size is None else size}] with M at least 1, got {[*value.shape]}")
    return value


def _count(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """How often each class occurs [C]; -1 does not count. Whole numbers, so that any order of adding is right."""
    there = (index >= 0).to(dtype)
    return torch.zeros(classes, dtype=dtype, device=index.device).scatter_add(0, index.clamp_min(0), there)


def _class_sums(start: Tensor, index: Tensor, part: Tensor) -> Tensor:
    """`start` [C, d] with each row of `part` added to its class, in a fixed order (a GPU's index_add has none)."""
    if start.device.type == "cpu":
        return start.index_add(0, index, part)
    return start.index_put((index,), part, accumulate=True)


def balanced_contrastive(
    views: Tensor,
    prototypes: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    batch_group: Any = None,
) -> Tensor:
    """Contrastive loss in which each class weighs the same in the denominator (Zhu et al., 2022).

    The keys are the views v and the class prototypes u, all normalised here; n_c of them are of class c. With
    s = 1 / temperature and P_i the other keys of the row's class,

        L_i = log sum_{k != i} exp(s v_i.k) / (n_{y_k} - 1[y_k = y_i]) - (1 / |P_i|) sum_{k in P_i} s v_i.k

    Args:
        views: [V N, d], view after view.
        prototypes: one for each class [C, d]; keys, never anchors.
        target: class indices [N], the same for each view.
        temperature: above 0.
        reduction: "mean" and "sum" over the V N rows, "none" for [V N].
        batch_group: the ranks over which the batch is dealt (docs/distributed.md): a process group, "all" for all ranks
            of torch.distributed if it is initialised, or None for this process alone. The keys are then the views of
            all ranks, and their gradient is summed over the ranks; the rows are this rank's, and N is at least 1.

    Returns:
        A scalar, or [V N]; float32 under autocast, else in the dtype of `views`. No array of all pairs is held.

    Raises:
        TypeError, ValueError, IndexError: naming the argument.
    """
    group = ranks_of(batch_group)
    given = (views, prototypes, target, temperature, reduction)
    return placements.together(group, views, _balanced, *given, group)


def _balanced(
    views: Tensor, prototypes: Tensor, target: Tensor, temperature: float, reduction: str, group: Any
) -> Tensor:
    temperature = checks.number("temperature", temperature, above=0.0)
    checks.choice("reduction", reduction, ("none", "mean", "sum"))
    matrix("prototypes", prototypes, matrix("views", views).shape[1])
    checks.same_device("prototypes", prototypes, views)
    samples = target.shape[0] if isinstance(target, Tensor) and target.ndim == 1 else 0
    if samples == 0 or views.shape[0] % samples:
        shown = [*target.shape] if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"target must be [N] with views [V N, d], whose rows are {views.shape[0]}, got {shown}")
    target = class_indices(target, prototypes.shape[0], samples, views)
    many = views.shape[0] // samples
    keys_of = (views, target.repeat(many), None) if group is None else _of_ranks(views, target, many, group)
    loss = _balanced_rows(*keys_of, prototypes, temperature)
    loss = loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()
    return loss if autocast(views) else loss.to(views.dtype)


def _of_ranks(views: Tensor, target: Tensor, many: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The views of all ranks, view after view, their classes, and which of them are this rank's; `many` of a sample."""
    rows = views.reshape(many, len(target), -1).transpose(0, 1)
    dealt, (found, label) = batches.gathered(group, [("views", rows), ("target", target)])
    place = torch.arange(many * dealt.total, device=views.device).reshape(many, dealt.total)[:, dealt.own]
    return found.transpose(0, 1).flatten(0, 1), label.repeat(many), place.flatten()


def _balanced_rows(views: Tensor, label: Tensor, row: Tensor | None, prototypes: Tensor, temperature: float) -> Tensor:
    """The loss of each view [V N], or of some of them (`row`); docs/math.md, section 12."""
    kind, classes = accumulate_type(views.dtype), prototypes.shape[0]
    view, prototype = directions.unit(views.to(kind)), directions.unit(prototypes.to(kind))
    key_class = torch.cat((label, torch.arange(classes, device=label.device)))
    count, key = _count(key_class, classes, kind), torch.cat((view, prototype))
    sums = _class_sums(prototype, label, view)
    if row is None:
        row = torch.arange(label.shape[0], device=label.device)
    else:
        view, label = view[row], label[row]
    query, others = view / temperature, count[label] - 1
    rest, own = keys.statistics(query, key, label, key_class, -count.log()[key_class], row)
    positive = F.embedding(label, sums) - view  # a sum of keys: no pairs are needed
    return torch.logaddexp(rest, own + torch.log1p(1 / others)) - (query * positive).sum(1) / others


def class_mean_cross_entropy(
    query: Tensor, key: Tensor, target: Tensor, key_class: Tensor, log_prior: Tensor, own_key: Tensor | None = None
) -> Tensor:
    """Cross-entropy over S_ic + log p_c, where S_ic = log mean_{k of class c} exp(q_i.k) (Suh and Seo, 2023).

    A class without a key is not in the softmax. A row whose own class has none is left out of the mean; without any
    row that counts the loss is 0, with gradient 0.

    Args:
        query: [N, d], with the temperature in it.
        key: [K, d].
        target: class indices [N].
        key_class: class indices [K], or -1 for an empty place.
        log_prior: log p [C].
        own_key: [N], the key of class `target` that a row does not see, or -1; None leaves none out.

    Returns:
        A scalar, float32 or float64. Neither all q.k nor any [N, C] table is held.

    Raises:
        TypeError, ValueError, IndexError: naming the argument.
    """
    matrix("key", key, matrix("query", query).shape[1])
    kind = accumulate_type(query.dtype)
    classes = log_prior.shape[0]
    target = class_indices(target, classes, query.shape[0], query)
    key_class = _indices("key_class", key_class, key.shape[0], -1, classes, query)
    if own_key is not None:
        own_key = _indices("own_key", own_key, query.shape[0], -1, key.shape[0], query)
    count = _count(key_class, classes, kind)
    offset = (log_prior.to(kind) - count.clamp_min(1).log())[key_class.clamp_min(0)]
    rest, own = keys.statistics(query.to(kind), key.to(kind), target, key_class, offset, own_key)
    seen = count[target]
    left = seen if own_key is None else seen - (own_key >= 0).to(kind)
    counts = left > 0
    v = torch.where(counts, rest - own - (seen / left.clamp_min(1)).clamp_min(1).log(), 0.0)
    loss = torch.where(counts, torch.logaddexp(v, torch.zeros_like(v)), 0.0)
    return loss.sum() / counts.sum().clamp_min(1)
