"""What each named loss and each margin makes of the class counts, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.registry import NAMED, defaults
from fuzz.case import Case
from fuzz.judge import Spec


def with_margin(spec: Spec, margin: tuple[Any, ...], counts: Tensor) -> Spec:
    """The margin's kind of phi, and its number for each class."""
    name, *numbers = margin or ("",)
    if name in ("CosFace", "ArcFace", "SphereFace"):
        spec.phi = {"CosFace": "additive", "ArcFace": "angular", "SphereFace": "sphere"}[name]
        spec.margin, spec.guard = numbers[0], name == "ArcFace"
        spec.annealing = numbers[1] if len(numbers) > 1 else 0.0
    elif name == "LDAM":
        spec.phi, spec.margin = "additive", numbers[0] * (counts.min() / counts) ** 0.25
    elif name == "DBM":
        largest, tau, spec.instance, spec.guard, *applies = numbers
        spec.every = applies == ["all"]
        spec.phi, spec.margin = "angular", largest * (counts.min() / counts) ** tau
    return spec


def batch_counts(target: Any, classes: int, ignore: int) -> Tensor:
    """N_c of the batch (of a pair's first targets)."""
    first = target[0] if isinstance(target, tuple) else target
    return torch.bincount(first[first != ignore], minlength=classes).double()


def named(case: Case, spec: Spec, counts: Tensor, target: Any) -> tuple[Spec, Tensor | None]:
    """What a named loss chooses (docs/math.md, section 10): its spec, and its offset [C] or None."""
    if case.options.get("counts") == "batch":
        counts = batch_counts(target, len(counts), spec.ignore)
    terms = NAMED[case.loss].terms(counts, **(defaults(case.loss) | case.options))
    offset = terms.pop("offset", None)
    if "margin" in terms:
        spec = with_margin(spec, terms.pop("margin"), counts)
    for name, value in terms.items():
        setattr(spec, name, value)
    return spec, offset


def lade_part(case: Case, by: Any, z: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """alpha times LADE's regulariser."""
    given = defaults("LADELoss") | case.options
    return given.pop("alpha") * by.lade(z, target, counts, **given)


def estimated(
    case: Case, by: Any, z: Tensor, target: Tensor, spec: Spec, centers: Tensor, leaves: dict[str, Tensor]
) -> Tensor:
    """CE(z - o) + w_c mean |x - c_y|^2 + w_u sum q log q, with o_k = c_k.w_k / 2 and q = softmax(-o)."""
    given = defaults(case.loss) | case.options
    x = leaves["input"].reshape(-1, case.features)
    table = -(centers * leaves["linear_weight"]).sum(1) / 2
    loss = by.cross_entropy(z, target, table if given["use"] == "subtract" else None, "class", spec, None)
    distance = (x - centers[target]).square().sum() / len(x)
    log_q = torch.log_softmax(table, 0)
    uniform = 0 if given["use"] == "predict" else given["uniform_weight"] * (log_q.exp() * log_q).sum()
    return loss + given["center_weight"] * distance + uniform
