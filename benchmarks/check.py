"""No time counts before the result is right: every provider against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.problems import Problem
from benchmarks.providers import Provider, autograd, eager_function, providers
from tests.tolerances import TOLERANCE, error

# The work, in multiplications and their like, up to which the float64 truth is computed whole; else on fewer rows. Some
# 15 seconds on two cores. An entry of the logits costs about as much as OVERHEAD multiplications beyond its product.
WHOLE = 5e10
OVERHEAD = 64
ON_A_GPU = 8  # times as much there
# A provider may err by this many times what eager torch errs in the same dtype, plus the tolerance of the dtype.
ALLOWANCE = 3.0


def reduced(problem: Problem) -> Problem:
    """The problem itself where float64 can afford it, else its first rows (for weights its first classes)."""
    case = problem.case
    whole = WHOLE * (ON_A_GPU if problem.device.startswith("cuda") else 1)
    if case.rows == 0:
        rows = int((whole / (case.depth + OVERHEAD)) ** 0.5)
        if case.classes <= rows:
            return problem
        leaves = {name: leaf.detach()[:rows].requires_grad_() for name, leaf in problem.leaves.items()}
        return Problem(replace(case, classes=rows), leaves, problem.constants)
    rows = max(1, int(whole / (case.classes * (case.depth + OVERHEAD))))
    if rows >= case.rows:
        return problem
    batch = ("input", "logits", "cosine", "target")
    cut = {name: leaf.detach()[:rows] if name in batch else leaf.detach() for name, leaf in problem.leaves.items()}
    constants = {name: x[:rows] if name in batch else x for name, x in problem.constants.items()}
    return Problem(replace(case, rows=rows), {name: leaf.requires_grad_() for name, leaf in cut.items()}, constants)


def result(provider: Provider) -> list[Tensor]:
    """The loss and the gradients of all leaves."""
    loss = provider.forward()
    return [loss.detach(), *provider.backward(loss)]


def worst_error(actual: list[Tensor], exact: list[Tensor]) -> float:
    """Largest error over the value and all gradients, each in units of its largest exact entry."""
    return max(error(ours, true) for ours, true in zip(actual, exact, strict=True))


def errors(
    problem: Problem, names: Sequence[str], refused: Callable[[str, Exception], None] | None = None
) -> dict[str, tuple[float, bool]]:
    """For each provider that claims a result: its error against float64, and whether that is small enough.

    A competitor that fails is handed to `refused`, if that is given, and left out.
    """
    small = reduced(problem)
    wide = small.to(torch.float64)
    exact = result(autograd("eager", eager_function(wide), wide))
    usual = worst_error(result(autograd("eager", eager_function(small), small)), exact)
    allowed = TOLERANCE[problem.case.dtype] + ALLOWANCE * usual
    found = {}
    for provider in providers(small, names):
        if not provider.is_limit:
            try:
                measured = worst_error(result(provider), exact)
            except Exception as error:
                if refused is None or provider.name == "ours":
                    raise
                refused(provider.name, error)
                continue
            found[provider.name] = (measured, measured <= allowed)
    return found
