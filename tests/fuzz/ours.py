"""The public names that a case calls, and what judge and eager make of the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.registry import made
from fuzz import judge, judge_tables
from fuzz.case import NAMED, Case
from fuzz.choices import WEIGHTED
from fuzz.judge import Spec
from fuzz.problem import Problem
from lt_kernels import functional, heads, losses

Call = Callable[..., Tensor]


def margin_of(case: Case, counts: Tensor) -> Any:
    """The margin as users make it."""
    if not case.margin:
        return None
    name, *numbers = case.margin
    with_counts = (counts,) if name in ("LDAM", "DBM") else ()
    return getattr(functional, name)(*with_counts, *numbers)


def target_of(problem: Problem) -> Any:
    """The target as users give it."""
    target = problem.target
    return functional.MixedTarget(*target) if isinstance(target, tuple) else target


def counts_of(problem: Problem) -> Tensor:
    """The class counts: none for a class that is not there."""
    return problem.counts.masked_fill(problem.absent, 0.0)


def settings_of(problem: Problem) -> dict[str, Any]:
    """What the cross-entropies share."""
    case = problem.case
    settings: dict[str, Any] = {"weight": problem.weight} if problem.weight is not None else {}
    if case.gamma:
        settings["focal_gamma"] = case.gamma
    if isinstance(problem.smoothing, Tensor) or problem.smoothing:
        settings["label_smoothing"] = problem.smoothing
    settings |= {"z_loss": case.z_loss, "shift": case.ahead}
    settings |= {"softcap": case.softcap} if case.softcap else {}
    if problem.by_row is not None:
        settings["sample_weight"] = problem.by_row
    return settings | {"ignore_index": case.ignore_index, "reduction": case.reduction}


def loss_of(problem: Problem) -> nn.Module:
    """A named loss with the settings of the case."""
    case = problem.case
    options: dict[str, Any] = {"ignore_index": case.ignore_index, "reduction": case.reduction, **case.options}
    if case.loss == "CrossEntropyLoss" and isinstance(problem.smoothing, float) and problem.smoothing:
        options["label_smoothing"] = problem.smoothing
    if case.loss in WEIGHTED and problem.weight is not None:
        options["weight"] = problem.weight
    if case.loss == "EstimatedOffsetLoss":
        return losses.EstimatedOffsetLoss(case.classes, case.features, centers="autograd", **options)
    return made(case.loss, counts_of(problem), **options)


def head_of(problem: Problem) -> nn.Module:
    """A head whose parameters are the leaves of the problem."""
    case, loss = problem.case, loss_of(problem)
    if case.function == "linear_head":
        head: nn.Module = heads.LinearHead(case.features, case.classes, loss, bias=case.bias)
    else:
        head = heads.CosineHead(case.features, case.classes, loss, scale=case.scale)
    given = problem.leaves | problem.frozen
    for module, name, key in ((head, "weight", "linear_weight"), (head, "bias", "linear_bias")):
        if key in given:
            setattr(module, name, nn.Parameter(given[key].detach(), requires_grad=key in problem.leaves))
    if "centers" in given:
        loss.center_loss.centers = nn.Parameter(given["centers"].detach())
    for key, parameter in (("linear_weight", head.weight), ("linear_bias", getattr(head, "bias", None))):
        if key in problem.leaves:
            problem.leaves[key] = parameter
    if "centers" in given:
        problem.leaves["centers"] = loss.center_loss.centers
    return head


def ours(problem: Problem) -> Call:
    """The call of the package, of the leaves by name."""
    case, target = problem.case, target_of(problem)
    if case.function == "repulsion":
        return lambda linear_weight: functional.logit_weight_repulsion(
            linear_weight, reduction=case.reduction, **case.options
        )
    if case.function == "lade":
        return lambda input: functional.lade_regularizer(input, target, counts_of(problem), **case.options)
    if case.function == "loss":
        loss = loss_of(problem)
        return lambda input: loss(input, target)
    if case.function in NAMED:
        head = head_of(problem)
        return lambda input, **parameters: head(input, target)
    settings = settings_of(problem)
    if case.function == "offset":
        return lambda input, **tables: functional.offset_cross_entropy(input, target, **settings, **tables)
    if case.function == "linear":
        return lambda input, linear_weight, **tables: functional.linear_cross_entropy(
            input, linear_weight, target, **settings, **tables
        )
    settings |= {"margin": margin_of(case, problem.counts), "scale": case.scale}
    return lambda input, linear_weight, **tables: functional.cosine_margin_cross_entropy(
        input, linear_weight, target, **settings, **tables
    )


def spec_of(problem: Problem) -> tuple[Spec, Tensor | None]:
    """What the judge knows of the case, and the offset that a named loss brings."""
    case = problem.case
    spec = Spec(ignore=case.ignore_index, reduction=case.reduction, scale=case.scale)
    if problem.weight is not None and (case.function not in NAMED or case.loss in WEIGHTED):
        spec.weight = problem.weight.double()
    if case.function not in NAMED:
        smoothing = problem.smoothing
        spec.gamma, spec.smoothing = case.gamma, smoothing.double() if isinstance(smoothing, Tensor) else smoothing
        spec.z_loss = case.z_loss
        spec.by_row = problem.flat_weight
        return judge_tables.with_margin(spec, case.margin, problem.counts), None
    if case.loss == "CrossEntropyLoss":
        spec.smoothing = problem.smoothing
    if case.function != "cosine_head":
        spec.scale = 1.0
    return judge_tables.named(case, spec, counts_of(problem), problem.flat)


def logits(
    case: Case, spec: Spec, by: ModuleType, input: Tensor, weight: Any = None, bias: Any = None
) -> tuple[Any, Any]:
    """Logits or cosines of flat rows, and the features' norms where a margin reads them."""
    if case.takes_logits:
        rows = input if input.ndim > 1 else input[None]
        return rows.movedim(1, -1).reshape(-1, case.classes), None
    rows = input.reshape(-1, case.features)
    if case.function in ("cosine", "cosine_head"):
        return by.cosines(rows, weight, spec.phi == "sphere")
    return torch.nn.functional.linear(rows, weight, bias), None


def without_ignored(case: Case, z: Tensor, target: Any) -> Tensor:
    """The logits, of which those of ignored rows have no gradient, also where they are NaN."""
    targets = target[:2] if isinstance(target, tuple) else (target,)
    if any(one.is_floating_point() for one in targets):
        return z
    ignored = torch.stack([one == case.ignore_index for one in targets]).all(0)
    return torch.where(ignored[:, None], z.detach(), z)


def dense(problem: Problem, by: ModuleType) -> Call:
    """The same by `judge` or by `eager`, of leaves in the dtype that these work in."""
    case, (spec, table) = problem.case, spec_of(problem)

    def call(offset: Any = None, centers: Any = None, **leaves: Tensor) -> Tensor:
        if case.function == "repulsion":
            given = {"threshold": 0.4, "project": True} | case.options
            return by.repulsion(leaves["linear_weight"], reduction=case.reduction, **given)
        z, norm = logits(case, spec, by, *(leaves.get(name) for name in ("input", "linear_weight", "linear_bias")))
        z = case.softcap * torch.tanh(without_ignored(case, z, problem.flat) / case.softcap) if case.softcap else z
        if by is judge:
            problem.seen["z"] = z
        if case.function == "lade":
            usual = {"lam": 0.1, "importance": "class", "classes": "all"} | case.options
            return by.lade(z, problem.flat, counts_of(problem), **usual)
        form = case.offset if table is None else "class"
        given = flat_offset(case, offset) if table is None else table
        if centers is not None:
            return judge_tables.estimated(case, by, z, problem.flat, spec, centers, leaves)
        value = by.cross_entropy(z, problem.flat, given, form, spec, norm)
        if case.loss == "LADELoss" and case.function in NAMED:
            value = value + judge_tables.lade_part(case, by, spec.scale * z, problem.flat, counts_of(problem))
        return value if case.reduction != "none" else value.reshape(places(case))

    return call


def places(case: Case) -> tuple[int, ...]:
    """The shape of the loss without a reduction."""
    return () if case.single else (case.rows, *case.places)


def flat_offset(case: Case, offset: Any) -> Any:
    """The offset of flat rows."""
    if offset is None or case.offset != "row":
        return offset
    if offset.ndim == 3 and offset.shape[1] == 1 and not case.places:
        return offset[:, 0]
    return offset.movedim(1, -1).reshape(-1, case.classes) if offset.ndim > 1 else offset[None]
