"""What the gradient of each class weight is made of: the samples that attract it, and those that repel it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.metrics.inputs import chosen_classes, labels, matrix, rows, shares, sizes, sums

_SLAB = 2**24  # float64 numbers of a slab of probabilities, or of vectors of one class's samples


def _checked(probability: Any, features: Any, target: Any, origin: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Probabilities [N, C] of their own dtype, features [N, d], classes [N], and the origins [C, d] where given."""
    values = matrix("features", features)
    share = checks.same_device("probability", shares("probability", probability), values)
    if share.ndim != 2 or share.shape[0] != len(values) or share.shape[1] == 0:
        raise ValueError(f"probability must be [N, C] with N = {len(values)} as features, got {list(share.shape)}")
    target = labels(target, values, share.shape[1])
    if origin is None:
        return share, values, target, None
    origin = checks.same_device("origin", rows("origin", origin), values)
    if origin.shape != (share.shape[1], values.shape[1]):
        raise ValueError(f"origin must be [C, d] = {[share.shape[1], values.shape[1]]}, got {list(origin.shape)}")
    return share, values, target, origin


def _lengths(vectors: Tensor, factors: Tensor, origin: Tensor | None) -> Tensor:
    """|v_c - f_c a_c|: sums [C, d] of f_i x_i become sums of f_i (x_i - a_c), where f_c is the sum of the f_i."""
    return torch.linalg.vector_norm(vectors if origin is None else vectors - factors[:, None] * origin, dim=1)


def gradient_components(
    probability: Tensor, features: Tensor, target: Tensor, *, origin: Tensor | None = None
) -> dict[str, Tensor]:
    """The two forces on each class weight of a softmax classifier: the lengths of the parts of -dL/dw_c.

    With L the mean loss over N samples: "attraction", |(1/N) sum_{y_i = c} (1 - p_ic) x_i|, from the class's own
    samples; "repulsion", |(1/N) sum_{y_i != c} p_ic x_i|, from the others'. Both are float64 [C], 0 for a class without
    such samples and NaN for N = 0. probability: [N, C], the loss's own, so with its offset; features: [N, d]; target:
    class indices [N]; origin: [C, d] where the logits are w_c.(x - a_c) and x_i - a_c takes the place of x_i, which is
    half the class centres for an estimated offset. Errors: TypeError or ValueError naming the argument (Xie et al.,
    2023, figure 5).
    """
    share, values, target, origin = _checked(probability, features, target, origin)
    count, classes = share.shape
    missing = 1 - share.gather(1, target[:, None]).double()
    attraction = _lengths(sums(missing * values, target, classes), sums(missing[:, 0], target, classes), origin)
    others, width = share.scatter(1, target[:, None], 0.0), max(1, _SLAB // max(count, 1))
    repulsion = []
    for first in range(0, classes, width):
        factor = others[:, first : first + width].T.double()
        start = None if origin is None else origin[first : first + width]
        repulsion.append(_lengths(factor @ values, factor.sum(1), start))
    scale = 1 / count if count else math.nan
    return {"attraction": scale * attraction, "repulsion": scale * torch.cat(repulsion)}


def gradient_parts(
    probability: Tensor, features: Tensor, target: Tensor, classes: Any = None, *, origin: Tensor | None = None
) -> Tensor:
    """G_kc: how strongly the samples of each class k move the weight of class c of a softmax classifier.

    G_kc = |sum_{y_i = k} p_ic x_i| for k != c, the repulsion of w_c by the samples of class k, and
    G_cc = |sum_{y_i = c} (1 - p_ic) x_i|, its attraction by its own: float64 [C, R], a row a class k, a column for each
    of the R classes c in `classes` (indices; by default all C). Sums over the samples, so divide by N for the parts of
    a mean loss. 0 for a class without samples. probability, features, target, origin: of `gradient_components`. Takes
    O(N R d) time, and holds the vectors of one k at a time. Errors: TypeError or ValueError naming the argument (Xie et
    al., 2023, eq. 23).
    """
    share, values, target, origin = _checked(probability, features, target, origin)
    number = share.shape[1]
    chosen = torch.arange(number) if classes is None else chosen_classes("classes", classes, number)
    chosen = chosen.to(values.device)
    members = sizes(target, number).tolist()
    result = values.new_zeros((number, len(chosen)))
    for index, samples in enumerate(target.argsort(stable=True).split(members)):
        width = max(1, _SLAB // max(len(samples), values.shape[1]))
        for place in range(0, len(chosen) if len(samples) else 0, width):
            columns, own = chosen[place : place + width], values[samples]
            factor = share[samples[:, None], columns].double()
            factor = torch.where(columns == index, 1 - factor, factor).T
            start = None if origin is None else origin[columns]
            result[index, place : place + width] = _lengths(factor @ own, factor.sum(1), start)
    return result
