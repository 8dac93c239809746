"""The geometry of class weights and features: balance, similarity, separability, angles."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.metrics.inputs import columns, labels, matrix, means, rows, sizes

_SLAB = 2**22  # float64 numbers of a slab of pairs of classes


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length one; NaN for a zero row. Scaled by their largest entry first, so that no square overflows."""
    scaled = vectors / vectors.abs().amax(1, keepdim=True)
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)


def _spread(weight: Tensor, divisor: int) -> float:
    """sum_{i != j} (w_i.w_j - mean)^2 / divisor, by slabs of rows; each pair is computed once."""
    mean = (weight.sum(0).square().sum() - weight.square().sum()) / divisor
    height, total = max(1, _SLAB // len(weight)), weight.new_zeros(())
    for start in range(0, len(weight), height):
        products = weight[start : start + height] @ weight[start:].T
        total = total + (products - mean).square().triu(1).sum()
    return float(2 * total / divisor)


def balance_metrics(linear_weight: Tensor, pairs: Literal["c(c-1)", "(c-1)^2"] = "c(c-1)") -> dict[str, float]:
    """How far the class weights [C, d] are from a simplex equiangular tight frame, 0 being on it.

    "dot": B_D^2 = (1/D) sum_{i != j} (w_i.w_j - mu)^2 with mu = (1/D) sum_{i != j} w_i.w_j; "angle": B_A^2, the same
    of the cosines; "norm": B_L^2, the population variance of |w_i|. D is `pairs`: "c(c-1)", the number of ordered
    pairs, or "(c-1)^2" as printed, which makes C / (C - 1)^5 of a frame. A zero row makes "angle" NaN, a NaN all
    three. Takes O(C^2 d). Errors: TypeError or ValueError naming the argument, also for fewer than two classes
    (Xie et al., 2023, eq. 19).
    """
    checks.choice("pairs", pairs, ("c(c-1)", "(c-1)^2"))
    weight = rows("linear_weight", linear_weight, least=2)
    classes = len(weight)
    divisor = classes * (classes - 1) if pairs == "c(c-1)" else (classes - 1) ** 2
    norm = torch.linalg.vector_norm(weight, dim=1)
    return {
        "dot": _spread(weight, divisor),
        "angle": _spread(_unit(weight), divisor),
        "norm": float(norm.var(correction=0)),
    }


def affinity_matrix(linear_weight: Tensor) -> Tensor:
    """M_ij = w_i.w_j / sum_{k != i} w_i.w_k with a zero diagonal: how class weights [C, d] share out their affinity.

    Returns float64 [C, C]; each row sums to 1, and entries are negative where products of both signs meet. A row whose
    sum is exactly 0 is NaN. Errors: TypeError or ValueError naming the argument, also for fewer than two classes
    (Xie et al., 2023, eq. 20).
    """
    weight = rows("linear_weight", linear_weight, least=2)
    product = (weight @ weight.T).fill_diagonal_(0)
    total = product.sum(1, keepdim=True)
    return product.div_(torch.where(total == 0, torch.nan, total))


def class_similarity(linear_weight: Tensor) -> Tensor:
    """cos(w_i, w_j) of the class weights (or class means) [C, d]: float64 [C, C] with ones on the diagonal.

    Row and column of a class whose weight is zero or not finite are NaN. Errors: TypeError or ValueError naming the
    argument.
    """
    unit = _unit(rows("linear_weight", linear_weight))
    cosine = unit @ unit.T
    diagonal = cosine.diagonal()
    diagonal.copy_(torch.where(diagonal.isnan(), diagonal, 1.0))  # not 1 give or take a rounding
    return cosine


def class_means(features: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The mean of each class's features: float64 [C, d], a row of NaN for a class without samples.

    features: [N, d]; target: class indices [N]. Errors: TypeError or ValueError naming the argument.
    """
    num_classes, values = checks.whole("num_classes", num_classes), matrix("features", features)
    return means(values, labels(target, values, num_classes), num_classes)


def _covariances(deviations: Tensor, target: Tensor, members: Tensor) -> Tensor:
    """The population covariance [d, d] of each class that has samples."""
    parts = deviations[target.argsort(stable=True)].split(members.tolist())
    return torch.stack([part.T @ part / len(part) for part in parts])


def _ratios(gap: Tensor, scatter: Tensor, ridge: float) -> Tensor:
    """gap' (scatter + ridge tr / d I)^-1 gap for each pair of classes: [P] of [P, d] and [P, d, d] (ours to change)."""
    diagonal = scatter.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(1)
    there = trace > 0
    diagonal += (ridge * trace / gap.shape[1])[:, None]
    factor, info = torch.linalg.cholesky_ex(torch.where(there[:, None, None], scatter, torch.eye(gap.shape[1]).to(gap)))
    if bool((info != 0).any()):
        raise ValueError(f"ridge must be larger: the covariance of two classes together is singular with {ridge}")
    solved = torch.linalg.solve_triangular(factor, gap[:, :, None], upper=False)
    return torch.where(there, solved.square().sum((1, 2)), gap.square().sum(1) / trace)


def fisher_separability(features: Tensor, target: Tensor, num_classes: int, *, ridge: float = 1e-6) -> Tensor:
    """S_i = mean over j != i of J_ij = (m_i - m_j)' (V_i + V_j)^-1 (m_i - m_j), Fisher's ratio in the best direction.

    m and V are a class's mean and population covariance (divisor n). V_i + V_j gets ridge tr(V_i + V_j) / d on its
    diagonal: it is singular where two classes have d + 1 samples or fewer, or a feature is constant, and the ridge then
    decides how large J is. Where two classes are a point each, J is infinite, or NaN if it is the same point.

    features: [N, d]; target: class indices [N]; ridge: at least 0. Returns float64 [C]; NaN for classes without
    samples, which are also left out as j, for a class alone, and for all if a feature is NaN. Takes O(C^2 d^3) time and
    O(C d^2) memory. Errors: TypeError or ValueError naming the argument; ridge also if the sum is singular with it
    (Fisher, 1936).
    """
    num_classes, ridge = checks.whole("num_classes", num_classes), checks.number("ridge", ridge, 0.0)
    values = matrix("features", features)
    target = labels(target, values, num_classes)
    members, result = sizes(target, num_classes), values.new_full((num_classes,), torch.nan)
    present = members.nonzero().flatten()
    if len(present) < 2:
        return result
    centre = means(values, target, num_classes)
    scatter = _covariances(values - centre[target], target, members[present])
    centre = centre[present]
    total, some = torch.zeros_like(centre[:, 0]), max(1, _SLAB // scatter[0].numel())
    for one in range(len(present) - 1):
        for start in range(one + 1, len(present), some):
            others = slice(start, start + some)
            ratio = _ratios(centre[one] - centre[others], scatter[one] + scatter[others], ridge)
            total[one] += ratio.sum()
            total[others] += ratio
    result[present] = total / (len(present) - 1)
    return result


def angular_distance(features: Tensor, target: Tensor, reference: Tensor) -> Tensor:
    """The angle between each feature and its class's reference, 2 atan2(|u - v|, |u + v|) of the unit vectors u, v.

    features: [N, d]; target: class indices [N]; reference: [C, d], class weights or class means. Returns float64 [N] in
    radians, 0 to pi, exact to rounding also near both ends, where the arc cosine loses half the digits; NaN for a
    zero vector, or one that is not finite. Errors: TypeError or ValueError naming the argument (Kahan, 2006).
    """
    values, towards = matrix("features", features), rows("reference", reference)
    columns("reference", towards, "features", values)
    left, right = _unit(values), _unit(towards)[labels(target, values, len(towards))]
    norm = torch.linalg.vector_norm
    return 2 * torch.atan2(norm(left - right, dim=1), norm(left + right, dim=1))


def empirical_offsets(features: Tensor, target: Tensor, linear_weight: Tensor) -> Tensor:
    """o_c = m_c.w_c / 2, m_c the mean of class c's features: float64 [C], NaN for a class without samples.

    features: [N, d]; target: class indices [N]; linear_weight: [C, d]. The logits that go with it are w_c.x - o_c.
    Errors: TypeError or ValueError naming the argument (Kim, Hong and Kim).
    """
    values, weight = matrix("features", features), rows("linear_weight", linear_weight)
    columns("linear_weight", weight, "features", values)
    return (means(values, labels(target, values, len(weight)), len(weight)) * weight).sum(1) / 2


def estimated_offsets(centers: Tensor, linear_weight: Tensor) -> Tensor:
    """o_c = c_c.w_c / 2 of the learned class centres and weights, both [C, d]: float64 [C].

    Errors: TypeError or ValueError naming the argument (Kim, Hong and Kim).
    """
    centre, weight = rows("centers", centers), rows("linear_weight", linear_weight)
    if weight.shape != centre.shape:
        raise ValueError(f"linear_weight must be {list(centre.shape)} as centers is, got {list(weight.shape)}")
    return (centre * checks.same_device("linear_weight", weight, centre)).sum(1) / 2


def boundary_shift(linear_weight: Tensor, offset: Any, mean: Tensor) -> Tensor:
    """d_jk: how far the boundary between two classes has moved from the middle of their means, towards class k's.

    The logits are w_c.x - o_c, so the boundary is where (w_j - w_k).x = o_j - o_k. With m the middle of the means m_j
    and m_k, d_jk = ((w_j - w_k).m - (o_j - o_k)) / |w_j - w_k|: the distance of m from the boundary, 0 half-way, and
    positive where m is predicted as j, so that class k has lost ground. d_kj = -d_jk.

    linear_weight, mean: [C, d], of which `mean` has the class means of `class_means`; offset: [C], for a trained bias b
    it is -b. Returns float64 [C, C] in the features' unit; NaN on the diagonal, for two classes of equal weights, and
    for a class whose mean is. Takes O(C^2 d). Errors: TypeError or ValueError naming the argument (after the difference
    of distances of Kim, Hong and Kim, eq. 4).
    """
    weight, centre = rows("linear_weight", linear_weight), rows("mean", mean)
    if centre.shape != weight.shape:
        raise ValueError(f"mean must be {list(weight.shape)} as linear_weight is, got {list(centre.shape)}")
    moved = checks.held("offset", checks.by_class("offset", offset)).to(weight)
    if len(moved) != len(weight):
        raise ValueError(f"offset must have {len(weight)} entries as linear_weight has rows, got {len(moved)}")
    half = weight @ checks.same_device("mean", centre, weight).T / 2
    own = half.diagonal() - moved
    gap = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")  # by products it would cancel
    return ((own[:, None] - own) + (half - half.T)) / torch.where(gap == 0, torch.nan, gap)
