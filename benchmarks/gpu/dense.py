"""What the GPU check judges by: the public functions in plain torch, dense; in float64 they are the truth.

Options that torch has are torch's; those that only papers have are `tests/published.py`, in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.functional import MixedTarget
from tests import published

# The margins of the scenes, by name: phi(cosine [N, C], target [N], class_counts [C]) -> [N].
MARGINS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": lambda cosine, target, counts: published.own_of(cosine, target),
    "cosface": lambda cosine, target, counts: published.cosface(published.own_of(cosine, target), 0.3),
    "arcface": lambda cosine, target, counts: published.arcface(published.own_of(cosine, target), 0.5),
    "sphereface": lambda cosine, target, counts: published.sphereface(published.own_of(cosine, target), 4),
    "sphereface annealed": lambda cosine, target, counts: published.sphereface(
        published.own_of(cosine, target), 4, 2.0
    ),
    "ldam": lambda cosine, target, counts: published.cosface(
        published.own_of(cosine, target), published.ldam_margin(counts).to(cosine.dtype)[target]
    ),
    "dbm": lambda cosine, target, counts: published.dbm(
        cosine, target, published.dbm_margin(counts, 0.3).to(cosine.dtype)
    ),
    "dbm of all": lambda cosine, target, counts: published.dbm(
        cosine, target, published.dbm_margin(counts, 0.3).to(cosine.dtype), applies="all"
    ),
    "dbm guard": lambda cosine, target, counts: published.dbm(
        cosine, target, published.dbm_margin(counts, 0.9, 0.2).to(cosine.dtype), 2.0, guard=True
    ),
}


def entropy(logits: Tensor, target: Any, offset: Tensor | None = None, **options: Any) -> Tensor:
    """The loss of `functional.offset_cross_entropy`, with its options, for logits [C], [N, C] or [N, C, ...]."""
    if isinstance(target, MixedTarget):
        first, second = (entropy(logits, one, offset, **options) for one in (target.first, target.second))
        return target.lam * first + (1 - target.lam) * second
    if not options.keys().isdisjoint(("softcap", "z_loss", "sample_weight")):
        return _of_language(logits, target, offset, **options)
    smoothing, gamma = options.get("label_smoothing", 0.0), options.get("focal_gamma", 0.0)
    missing = offset is not None and bool((offset == -torch.inf).any())
    if gamma or isinstance(smoothing, Tensor) or (missing and smoothing):
        return _published(logits, target, offset, **options)
    if offset is not None:
        by_target = offset.ndim == 3 and offset.shape[0] == 1
        logits = logits + (offset[0][target.clamp_min(0)] if by_target else offset)
    return F.cross_entropy(logits, target, **{key: value for key, value in options.items() if key != "focal_gamma"})


def _of_language(
    logits: Tensor,
    target: Tensor,
    offset: Tensor | None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The mean over the rows, none of them ignored, with the options that language models are trained with."""
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    losses = entropy(logits, target, offset, reduction="none", **options)
    losses = losses + z_loss * (logits if offset is None else logits + offset).logsumexp(1).square()
    return losses.mean() if sample_weight is None else (sample_weight * losses).sum() / sample_weight.sum()


def _published(
    logits: Tensor,
    target: Tensor,
    offset: Tensor | None,
    weight: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float | Tensor = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    kind = torch.promote_types(logits.dtype, torch.float32)

    def wide(table: Any) -> Any:
        return table.to(kind) if isinstance(table, Tensor) else table

    settings = (focal_gamma, wide(label_smoothing), ignore_index, reduction)
    return published.cross_entropy(logits.to(kind), target, wide(weight), wide(offset), *settings).to(logits.dtype)


def linear(input: Tensor, linear_weight: Tensor, target: Any, linear_bias: Tensor | None = None, **rest: Any) -> Tensor:
    """The loss of `functional.linear_cross_entropy`."""
    return entropy(F.linear(input, linear_weight, linear_bias), target, **rest)


def cosine(
    input: Tensor, linear_weight: Tensor, target: Any, margin: str, scale: float, counts: Tensor, **rest: Any
) -> Tensor:
    """The loss of `functional.cosine_margin_cross_entropy` with the margin of that name."""
    if isinstance(target, MixedTarget):
        same = (input, linear_weight)
        parts = [cosine(*same, one, margin, scale, counts, **rest) for one in (target.first, target.second)]
        return target.lam * parts[0] + (1 - target.lam) * parts[1]
    values = F.linear(F.normalize(input), F.normalize(linear_weight))
    chosen = target.clamp_min(0)
    logits = scale * published.replace(values, chosen, MARGINS[margin](values, chosen, counts))
    if margin.startswith("sphereface"):
        logits = logits * input.norm(dim=1, keepdim=True)
    return entropy(logits, target, **rest)


def repulsion(linear_weight: Tensor, **options: Any) -> Tensor:
    """The loss of `functional.logit_weight_repulsion`."""
    return published.logit_weight_repulsion(linear_weight, **options)


def lade(logits: Tensor, target: Tensor, counts: Tensor, **options: Any) -> Tensor:
    """The loss of `functional.lade_regularizer`."""
    return published.lade_regularizer(logits, target, counts.to(logits.dtype), **options)
