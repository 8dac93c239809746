"""The judge's own tables: what each named loss and each margin makes of the class counts, in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fuzz.case import Case
from fuzz.judge import INF, Spec


def log_prior(counts: Tensor, tau: float = 1.0) -> Tensor:
    """tau log p_c; a class without samples is not there."""
    return torch.where(counts > 0, tau * torch.log(torch.where(counts > 0, counts, 1.0) / counts.sum()), -INF)


def class_balanced(counts: Tensor, beta: float, normalize: bool = True) -> Tensor:
    """(1 - beta) / (1 - beta^n), with a sum of C."""
    numbers = [(1 - beta) / -math.expm1(n * math.log(beta)) if beta else 1.0 for n in counts.tolist()]
    weight = torch.tensor(numbers, dtype=torch.float64)
    return weight * len(weight) / weight.sum() if normalize else weight


def label_aware(counts: Tensor, head: float, tail: float, shape: str, power: float, spread: str) -> Tensor:
    """The smoothing of each class; over the others only it is e C / (C - 1) over all."""
    least, most = counts.min(), counts.max()
    r = torch.ones_like(counts) if least == most else (counts - least) / (most - least)
    if shape == "convex":
        eps = head + (head - tail) * torch.sin(1.5 * math.pi + math.pi * r / 2)
    else:
        rise = {"concave": torch.sin(math.pi * r / 2), "linear": r, "exp": r**power}[shape]
        eps = tail + (head - tail) * rise
    return eps if spread == "all" else eps * len(counts) / (len(counts) - 1)


def with_margin(spec: Spec, margin: tuple[Any, ...], counts: Tensor) -> Spec:
    """The margin's kind of phi, and its number for each class."""
    name, *numbers = margin or ("",)
    if name in ("CosFace", "ArcFace", "SphereFace"):
        spec.phi = {"CosFace": "additive", "ArcFace": "angular", "SphereFace": "sphere"}[name]
        spec.margin, spec.guard = numbers[0], name == "ArcFace"
    elif name == "LDAM":
        spec.phi, spec.margin = "additive", numbers[0] * (counts.min() / counts) ** 0.25
    elif name == "DBM":
        largest, tau, spec.instance, spec.guard = numbers
        spec.phi, spec.margin = "angular", largest * (counts.min() / counts) ** tau
    return spec


MARGINS = {
    "LDAMLoss": ("LDAM", {"max_margin": 0.5}),
    "DBMLoss": ("DBM", {"max_margin": 0.1, "tau": 1.0, "instance": 1.0, "guard": False}),
    "CosFaceLoss": ("CosFace", {"margin": 0.35}),
    "ArcFaceLoss": ("ArcFace", {"margin": 0.5}),
    "SphereFaceLoss": ("SphereFace", {"margin": 4}),
}
SCALES = {"LDAMLoss": 30.0, "DBMLoss": 30.0, "CosFaceLoss": 64.0, "ArcFaceLoss": 64.0, "SphereFaceLoss": 1.0}


def batch_log_count(target: Any, classes: int, ignore: int) -> Tensor:
    """log N_c of the batch (of a pair's first targets), where there are any."""
    first = target[0] if isinstance(target, tuple) else target
    count = torch.bincount(first[first != ignore], minlength=classes).double()
    return torch.where(count > 0, count.log(), -INF)


def named(case: Case, spec: Spec, counts: Tensor, target: Any) -> tuple[Spec, Tensor | None]:
    """What a named loss chooses (docs/math.md, section 10): its spec, and its offset [C] or None."""
    given, offset = case.options, None
    if case.loss in MARGINS:
        name, usual = MARGINS[case.loss]
        spec = with_margin(spec, (name, *(given.get(key, value) for key, value in usual.items())), counts)
        spec.scale = given.get("scale", SCALES[case.loss])
    if case.loss in ("BalancedSoftmaxLoss", "LogitAdjustmentLoss", "LADELoss"):
        offset = log_prior(counts, given.get("tau", 1.0))
    elif case.loss == "ARBLoss":
        batch = given.get("counts") == "batch"
        offset = batch_log_count(target, len(counts), spec.ignore) if batch else log_prior(counts)
    elif case.loss == "FocalLoss":
        spec.gamma, spec.average = given.get("gamma", 2.0), "batch"
    elif case.loss == "ClassBalancedLoss":
        spec.weight = class_balanced(counts, given.get("beta", 0.9999), given.get("normalize", True))
        spec.gamma, spec.average = given.get("gamma", 0.0), given.get("average", "weighted")
    elif case.loss == "LabelAwareSmoothingLoss":
        usual = {"head": 0.3, "tail": 0.0, "shape": "concave", "power": 1.0, "spread": "all"} | given
        spec.smoothing = label_aware(counts, **usual)
    elif case.loss == "DBMLoss":
        offset = log_prior(counts) if given.get("base") == "bs" else None
        spec.weight = class_balanced(counts, 0.9999) if given.get("base") == "cb" else spec.weight
    return spec, offset


def lade_part(case: Case, by: Any, z: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """alpha times LADE's regulariser."""
    given = {"lam": 0.1, "importance": "class", "classes": "all"} | case.options
    return given.pop("alpha", 0.1) * by.lade(z, target, counts, **given)


def estimated(
    case: Case, by: Any, z: Tensor, target: Tensor, spec: Spec, centers: Tensor, leaves: dict[str, Tensor]
) -> Tensor:
    """CE(z - o) + w_c mean |x - c_y|^2 + w_u sum q log q, with o_k = c_k.w_k / 2 and q = softmax(-o)."""
    given = {"center_weight": 1.0, "uniform_weight": 1.0, "use": "subtract"} | case.options
    x = leaves["input"].reshape(-1, case.features)
    table = -(centers * leaves["linear_weight"]).sum(1) / 2
    loss = by.cross_entropy(z, target, table if given["use"] == "subtract" else None, "class", spec, None)
    distance = (x - centers[target]).square().sum() / len(x)
    log_q = torch.log_softmax(table, 0)
    return loss + given["center_weight"] * distance + given["uniform_weight"] * (log_q.exp() * log_q).sum()
