"""A case judged: value and gradients against float64, exact zeros, the same bits again, and inputs left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tolerances import NEGLIGIBLE
from torch import Tensor

from fuzz import eager, judge, limits, measure
from fuzz.case import Case
from fuzz.choices import COSINE
from fuzz.measure import Scale
from fuzz.ours import Call, dense, ours, spec_of
from fuzz.problem import Problem, build
from lt_kernels import memory_budget
from lt_kernels.ops import use_kernels

Outcome = dict[str, Tensor]


class Wrong(AssertionError):
    """An answer that is not right, or an error where there is nothing wrong."""


@dataclass(frozen=True)
class Verdict:
    """What a case that passed showed."""

    skipped: str = ""  # why the judge has no answer
    worst: float = 0.0  # by how much our error exceeds that of torch, in units of the tolerance


def is_cosine(case: Case) -> bool:
    """Whether the input of a named loss is cosines."""
    return case.function == "loss" and case.loss in COSINE


@contextlib.contextmanager
def setting(case: Case) -> Iterator[None]:
    """Threads, memory budget and kernels of a case."""
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if case.wing != "as shipped":
            stack.enter_context(use_kernels(case.wing))  # type: ignore[arg-type]
        if case.budget:
            stack.enter_context(memory_budget(case.budget))
        if threads != case.threads:
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(case.threads)
        yield


def incoming(case: Case, value: Tensor) -> Tensor:
    """The gradient that comes in; numbers that each dtype has exactly."""
    if case.incoming != "usual":
        return torch.full_like(value, 0.0 if case.incoming == "zero" else torch.inf)
    if value.ndim == 0:
        return torch.ones_like(value) if case.seed % 2 else torch.full_like(value, -0.75)
    steps = torch.arange(value.numel(), device=value.device) * 37 % 64
    return ((steps - 24) / 32).to(value.dtype).reshape(value.shape)


def differentiated(value: Tensor, leaves: dict[str, Tensor], case: Case, keep: bool = False) -> Outcome:
    """The gradient of each leaf, zero where it has none."""
    found = torch.autograd.grad(value, [*leaves.values()], incoming(case, value), keep, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), found, strict=True)
    }


def by_func(call: Call, leaves: dict[str, Tensor], fixed: dict[str, Tensor], case: Case) -> Outcome:
    """Value and gradients by torch.func."""

    def scalar(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        value = call(**leaves, **fixed)
        return (value * incoming(case, value)).sum(), value

    slopes, value = torch.func.grad(scalar, has_aux=True)({name: leaf.detach() for name, leaf in leaves.items()})
    return {"value": value, **slopes}


def outcome(call: Call, leaves: dict[str, Tensor], fixed: dict[str, Tensor], case: Case, mode: str) -> Outcome:
    """The value and the gradients of a call."""
    if mode == "func":
        return by_func(call, leaves, fixed, case)
    amp = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    with torch.set_grad_enabled(mode != "no_grad"):
        with amp:
            value = call(**leaves, **fixed)
        if mode == "no_grad" or not value.requires_grad:
            return {"value": value.detach()}
        first = differentiated(value, leaves, case, mode == "again")
        if mode == "again" and not same(first, differentiated(value, leaves, case)):
            raise Wrong("the second backward pass of one graph gives other gradients")
    return {"value": value.detach(), **first}


def same(one: Outcome, two: Outcome) -> bool:
    """Whether all bits agree (any NaN is like any other)."""
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype
        and torch.equal(one[key].nan_to_num(7.0), two[key].nan_to_num(7.0))
        and torch.equal(one[key].isnan(), two[key].isnan())
        for key in one
    )


def fresh(leaves: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies for judge and eager."""
    return {name: leaf.detach().to(dtype, copy=True).contiguous().requires_grad_() for name, leaf in leaves.items()}


def held(problem: Problem) -> dict[str, Tensor]:
    """Every tensor that a call may read, by name, copied."""
    named: dict[str, Any] = {
        **problem.leaves,
        **problem.frozen,
        "weight": problem.weight,
        "smoothing": problem.smoothing,
    }
    targets = problem.target if isinstance(problem.target, tuple) else (problem.target,)
    named |= {f"target {i}": one for i, one in enumerate(targets)}
    return {key: one.detach().clone() for key, one in named.items() if isinstance(one, Tensor)}


def answer(problem: Problem) -> Outcome:
    """What the package says, twice with the same bits; nothing that it was given is changed."""
    case = problem.case
    before = held(problem)
    with setting(case):
        call = ours(problem)
        leaves = {name: leaf.requires_grad_() for name, leaf in problem.leaves.items()}
        found = outcome(call, leaves, problem.frozen, case, case.mode)
        if not same(found, outcome(call, leaves, problem.frozen, case, case.mode)):
            raise Wrong("the same call gives other bits")
    if not same(before, held(problem)):
        raise Wrong("an input was changed")
    return found


def compared(name: str, ours: Tensor, theirs: Tensor, exact: Tensor, scale: Scale, shown: bool) -> float:
    """By how much our error exceeds torch's, in tolerances; `Wrong` also where an infinity or a NaN is misplaced."""
    if ours.shape != exact.shape:
        raise Wrong(f"{name} has shape {list(ours.shape)}, not {list(exact.shape)}")
    most = torch.finfo(ours.dtype).max
    rounded = torch.where(exact.abs() > most, torch.inf, exact)
    usable = (exact.abs() < 0.9 * most) | (exact.abs() > 1.1 * most) | exact.isnan()  # else rounding may overflow
    diverged, ours_too = ~rounded.isfinite(), ~ours.isfinite()
    if not shown and (usable & diverged & ~ours_too).any():
        raise Wrong(f"{name} is finite where it must not be\nours  {ours}\nexact {exact}")
    if (usable & ~diverged & ours_too & theirs.isfinite()).any():
        raise Wrong(f"{name} is not finite where it must be\nours  {ours}\ntorch {theirs}\nexact {exact}")
    plain = usable & ~diverged & ~ours_too & theirs.isfinite()
    mine, others, truth = (torch.where(plain, one.double(), 0.0) for one in (ours, theirs, exact))
    if not truth.numel():
        return 0.0
    size = max(float(truth.abs().max()), NEGLIGIBLE, scale.terms)
    left, right = float((mine - truth).abs().max()) / size, float((others - truth).abs().max()) / size
    excess = (left - right - scale.rounding / size) / scale.tolerance
    if excess > 1:
        figures = f"{left:.3e}, torch's {right:.3e}, tolerance {scale.tolerance:.0e} + {scale.rounding / size:.0e}"
        raise Wrong(f"{name}: error {figures}\nours  {ours}\ntorch {theirs}\nexact {exact}")
    return max(0.0, excess)


def must_be_zero(problem: Problem, found: Outcome, theirs: Outcome) -> None:
    """No gradient, to the bit, for rows that are ignored and for classes that are not there.

    Where features are not finite, 0 times these is NaN in torch's products too: there a row is asked for only if it is
    0 in torch.
    """
    case = problem.case
    if "input" not in found or case.mode == "no_grad":
        return
    slope = found["input"]
    slope = slope.movedim(1, -1) if case.takes_logits and slope.ndim > 2 else slope
    slope = slope.reshape(-1, slope.shape[-1])
    targets = problem.flat[:2] if isinstance(problem.flat, tuple) else (problem.flat,)
    if not targets[0].is_floating_point():
        nobody = torch.stack([one == case.ignore_index for one in targets]).all(0)
        spread = ~theirs["input"].isfinite().reshape(slope.shape)
        right = (slope == 0) | (spread & (not case.takes_logits and case.special in ("nan", "inf")))
        if not right[nobody].all():
            raise Wrong(f"an ignored row has a gradient: {slope[nobody]}")
    finite = case.special in ("none", "equal") and case.incoming != "inf" and bool(found["value"].isfinite().all())
    tables = finite and (case.offset != "none" or case.loss in limits.ABSENT)
    tables = tables and case.takes_logits and case.function != "lade" and case.loss != "LADELoss"
    if tables and not (slope[:, problem.absent] == 0).all():
        raise Wrong(f"a class that is not there has a gradient: {slope[:, problem.absent]}")


def exact_answer(problem: Problem) -> tuple[Outcome, dict[str, Scale]]:
    """The judge's value and gradients, and what each error is measured by."""
    case, fixed = problem.case, fresh(problem.frozen, torch.float64)
    leaves, call = fresh(problem.leaves, torch.float64), dense(problem, judge)
    value = call(**leaves, **fixed)
    inner, slope = problem.seen.get("z"), None
    if inner is not None:  # whatever comes in
        (slope,) = torch.autograd.grad(value.sum(), inner, retain_graph=True)
    found = differentiated(value, leaves, case)
    with torch.no_grad():
        scales = measure.scales(problem, leaves | fixed, slope, spec_of(problem))
    return {"value": value.detach()} | ({} if case.mode == "no_grad" else found), scales


def judged(case: Case) -> Verdict:
    """The verdict on a case that passes; `Wrong`, or whatever the call raised, on one that does not."""
    problem = build(case, is_cosine(case))
    if why := limits.undefined(problem, spec_of(problem)[0]):
        return Verdict(why)
    found = answer(problem)
    mode = "plain" if case.mode in ("func", "again") else case.mode
    truth, scales = exact_answer(problem)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in problem.leaves.items()}  # laid out as ours
    usual = dense(problem, eager), leaves, problem.frozen
    theirs = outcome(*usual, case, mode)
    if found.keys() != truth.keys():
        raise Wrong(f"gradients of {sorted(found)}, not of {sorted(truth)}")
    must_be_zero(problem, found, theirs)
    with torch.no_grad():
        shown = not bool(found["value"].isfinite().all())  # that something diverged; the gradients need not, too
        parts = [
            compared(key, found[key], theirs[key], truth[key], scales[key], shown and key != "value") for key in truth
        ]
    return Verdict(worst=max(parts))
