"""What an error is measured by: the tolerance of the dtype, the terms of a sum, and the rounding of computed logits.

The rule of the project is that our error against float64 exceeds that of eager torch by no more than the tolerance. Two
things make it one that chance cannot break. An error is in units of the largest entry or of the terms that are summed
to it, whichever is larger: where they cancel, what remains is rounding. And where logits are computed (from features,
with a scale or an offset), both programs round them, each in its own way, by a few units in the last place of their
size; given logits are exact, and there the rule stands alone, at any shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tolerances import TOLERANCE
from torch import Tensor

from fuzz import judge
from fuzz.case import Case
from fuzz.judge import Spec
from fuzz.problem import Problem

ULPS = 4  # by which a computed logit may be off


@dataclass(frozen=True)
class Scale:
    """How an error of one tensor is measured."""

    tolerance: float
    terms: float  # the size of what is summed
    rounding: float  # what rounded logits make of it, absolute


def finite_max(value: Tensor) -> float:
    """The largest finite entry."""
    value = value[value.isfinite()].abs()
    return float(value.max()) if value.numel() else 0.0


def low_dtype(case: Case) -> torch.dtype:
    """The dtype that products are made in."""
    return torch.bfloat16 if case.mode == "autocast" and not case.takes_logits else case.kind


def logit_size(problem: Problem, leaves: dict[str, Tensor], spec: Spec, table: Tensor | None) -> float:
    """The size of the terms that logits are computed from; 0 where they are given."""
    case, size = problem.case, 0.0
    offsets = [one for one in (table, leaves.get("offset")) if one is not None]
    if case.function in ("linear", "linear_head"):
        size = finite_max(leaves["input"].reshape(-1, case.features).abs() @ leaves["linear_weight"].abs().T)
        size += finite_max(leaves.get("linear_bias", torch.zeros(1)))
    elif case.function in ("cosine", "cosine_head"):
        size = finite_max(leaves["input"].reshape(-1, case.features).norm(dim=1)) if spec.phi == "sphere" else 1.0
    elif offsets or spec.scale != 1 or spec.phi != "plain" or case.function == "lade":
        size = finite_max(leaves["input"])
    return spec.scale * size + sum(map(finite_max, offsets))


def smoothed(problem: Problem, spec: Spec) -> float:
    """The share of a class in a target, by smoothing or given: where its probability is its share, they cancel."""
    case, eps = problem.case, spec.smoothing
    most = finite_max(eps) if isinstance(eps, Tensor) else float(eps)
    if case.target == "probability":
        most = case.classes * finite_max(problem.flat)
    weight = 1.0 if spec.weight is None else finite_max(spec.weight)
    rows = max(1, problem.seen["z"].shape[0]) if case.reduction == "mean" else 1
    return 2 * spec.scale * most * weight / case.classes / rows


def summed(problem: Problem, leaves: dict[str, Tensor], slope: Tensor, spec: Spec) -> dict[str, float]:
    """For each leaf the size of the terms that its gradient is the sum of; `slope` is that of all logits or cosines."""
    case, found = problem.case, {}
    slope = slope.nan_to_num(0.0, 0.0, 0.0).abs() + smoothed(problem, spec)
    found["linear_bias"] = finite_max(slope.sum(0))
    found["offset"] = found["linear_bias"] / spec.scale
    if case.takes_logits and case.target == "probability":
        found["input"] = smoothed(problem, spec)
    if case.function == "lade":  # a share of the column's softmax less one of the class's rows
        found["input"] = float(problem.counts.max() / problem.counts.sum()) / case.rows
    if "linear_weight" in leaves:
        x, w = leaves["input"].reshape(-1, case.features).abs(), leaves["linear_weight"].abs()
        if case.function in ("cosine", "cosine_head"):
            long, wide = (rows.norm(dim=1, keepdim=True).clamp_min(1e-12) for rows in (x, w))
            x, w = x / long.square() if spec.phi != "sphere" else x, w / wide
            found["input"] = finite_max(slope @ torch.ones_like(w) / (long if spec.phi != "sphere" else 1.0))
            found["linear_weight"] = finite_max(slope.T @ (x * long if spec.phi != "sphere" else x) / wide)
            found["linear_weight"] = max(found["linear_weight"], finite_max(slope.sum(0)[:, None] / wide))
        else:
            found["input"], found["linear_weight"] = finite_max(slope @ w), finite_max(slope.T @ x)
            found["centers"] = finite_max(slope.sum(0)[:, None] * w)
    return found


def raw_rounding(problem: Problem, weight: Tensor) -> float:
    """How far off a product of class weights may be."""
    return ULPS * torch.finfo(low_dtype(problem.case)).eps * finite_max(weight.square().sum(1))


def raw_scales(problem: Problem, weight: Tensor) -> dict[str, Scale]:
    """The same for repulsion of raw products, which round as logits do: R and sum_j (P_ij + P_ji) w_j."""
    case, rounding, lengths = problem.case, raw_rounding(problem, weight), weight.norm(dim=1)
    tolerance = TOLERANCE[low_dtype(case)]
    active = judge.cosines(weight, weight)[0] > case.options.get("threshold", 0.4)
    share = torch.where(active, weight @ weight.T, 0.0).softmax(1)
    each = 1 / case.classes if case.reduction == "mean" else 1.0
    size = each * max(finite_max((share + share.T) @ lengths), finite_max(lengths))
    rows = float(case.classes) if case.reduction == "sum" else 1.0
    found = {"value": Scale(tolerance, 1.0, 2 * rounding * rows)}
    return {**found, "linear_weight": Scale(tolerance, size, 2 * rounding * size)}


def scales(
    problem: Problem, leaves: dict[str, Tensor], slope: Tensor | None, named: tuple[Spec, Tensor | None]
) -> dict[str, Scale]:
    """The measure of the value and of each gradient."""
    case, (spec, table) = problem.case, named
    low = low_dtype(case)
    if slope is None:  # repulsion: cosines of pairs, and no logits
        lengths = leaves["linear_weight"].norm(dim=1)
        if case.options.get("project") == "raw":
            return raw_scales(problem, leaves["linear_weight"].double())
        shortest = float(lengths[lengths > 1e-12].min()) if bool((lengths > 1e-12).any()) else 1.0
        return {"value": Scale(TOLERANCE[low], 1.0, 0.0), "linear_weight": Scale(TOLERANCE[low], 2 / shortest, 0.0)}
    rounding = ULPS * torch.finfo(low).eps * logit_size(problem, leaves, spec, table)
    terms = summed(problem, leaves, slope, spec)
    total = finite_max(slope.nan_to_num(0.0, 0.0, 0.0).abs().sum())
    one = 1.0 if case.function == "lade" else 0.0  # its value is a difference of logarithms of that size
    found = {"value": Scale(TOLERANCE[low], one, rounding * max(one, total / spec.scale))}
    for name in problem.leaves:
        size = terms.get(name, 0.0)
        found[name] = Scale(TOLERANCE[low], size, rounding * (size or finite_max(slope)))
    return found
