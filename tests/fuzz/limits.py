"""Where the judge has no answer, each with its reason."""

from __future__ import annotations

from torch import Tensor

from fuzz import judge, measure
from fuzz.judge import Spec
from fuzz.problem import Problem

ABSENT = ("BalancedSoftmaxLoss", "LogitAdjustmentLoss", "LADELoss", "ARBLoss")  # take counts of 0


def rounding(problem: Problem) -> float:
    """How far off a cosine may be that a call reads."""
    case = problem.case
    if case.function == "loss":
        return 0.0
    if case.mode == "autocast":
        return 2e-2
    return {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}[case.dtype]


def cosines(problem: Problem) -> Tensor:
    """The cosines of a case, in float64; of each pair of classes for repulsion."""
    case, given = problem.case, {**problem.leaves, **problem.frozen}
    given = {key: value.detach().double() for key, value in given.items()}
    if case.function == "repulsion":
        return judge.cosines(given["linear_weight"], given["linear_weight"])[0]
    if case.takes_logits:
        rows = given["input"] if given["input"].ndim > 1 else given["input"][None]
        return rows.movedim(1, -1).reshape(-1, case.classes)
    return judge.cosines(given["input"].reshape(-1, case.features), given["linear_weight"])[0]


def undefined(problem: Problem, spec: Spec) -> str:
    """Why the judge has no answer to a case; "" if it has one."""
    case, near = problem.case, rounding(problem)
    if case.function == "repulsion":
        apart = cosines(problem).fill_diagonal_(-9.0) - problem.case.options.get("threshold", 0.4)
        if (apart.abs() <= near).any():
            return "a cosine at the threshold: a rounding decides"
        raw = case.options.get("project") == "raw"
        if raw and measure.raw_rounding(problem, problem.leaves["linear_weight"].detach().double()) > 0.1:
            return "products so large that their exponentials have no digit that holds"
        return ""
    if spec.phi not in ("angular", "sphere"):
        return ""
    cosine = cosines(problem)
    targets = problem.flat[:2] if isinstance(problem.flat, tuple) else (problem.flat,)
    for target in targets:
        rows = (target != spec.ignore).nonzero()[:, 0]
        part, chosen = cosine[rows], target[rows]
        own = part.gather(1, chosen[:, None])[:, 0]
        if (own.abs() > 1 - max(1e-6, near)).any():
            return "the target's cosine is 1 or -1: its slope is infinite"
        rival = part.scatter(1, chosen[:, None], -9.0).masked_fill(problem.absent, -9.0)
        if spec.instance and not spec.every and ((rival.amax(1) - own).abs() <= near).any():
            return "the target's cosine equals the largest other one: a rounding decides"
        angle = judge.of_class(spec.margin, chosen, own)
        edges = [angle * (1 + spec.instance * hard * (1 - own) / 2) for hard in (0, 1)]
        if spec.guard and any(((own + edge.cos()).abs() <= near).any() for edge in edges):
            return "theta + margin is pi: a rounding decides"
    return ""
