"""The benchmark of the GPU check: the cases that the goals are about first, as many as the time allows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks import peers, results, run
from benchmarks.cases import Case, cases
from benchmarks.gpu.report import Check
from benchmarks.gpu.roofline import GOALS
from benchmarks.results import Row, first_line

# What is measured when nothing but the machinery is tried.
FEW = ("ours", "eager", "products", "clone")
SECONDS = 0.4  # of work for each provider of a case
# After the goals: the operators in the order in which a user would ask.
ORDER = ("cross_entropy", "offset_cross_entropy", "linear_cross_entropy", "cosine_margin_cross_entropy",
         "logit_weight_repulsion", "lade_regularizer", "losses")  # fmt: skip


def ranked(every: Sequence[Case]) -> list[Case]:
    """The most important first: those of the goals, bfloat16, and by operator."""
    goals = [(goal.operator, goal.name, goal.dtype) for goal in GOALS]

    def key(case: Case) -> tuple[int, ...]:
        place = (case.operator, case.name, case.dtype)
        rank = goals.index(place) if place in goals else len(goals)
        return rank, case.operator == "losses", case.dtype == torch.float32, ORDER.index(case.operator)

    return sorted(every, key=key)


def bench(check: Check) -> None:
    """All cases with all providers, into the results file; one line a provider."""
    for name in peers.NAMES:
        reason = peers.absent(name)
        if reason:
            check.say(f"{name}: not measured, it does not import here ({reason})  ")
    check.table("case", "provider", "forward", "backward", "both (p20 .. p80), ms", "graph", "MiB", "error")
    dropped = []
    for case in ranked(cases("cuda")):
        if check.left() <= 0:
            dropped.append(run.title(case))
            continue
        with check.guarded(f"bench, {run.title(case)}"), check.kernels():
            one(case.tiny() if check.tiny else case, check)
        if check.device == "cuda":
            torch.cuda.empty_cache()
    if dropped:
        check.say(f"\nDropped when {check.minutes:g} minutes were over: {'; '.join(dropped)}.")


def one(case: Case, check: Check) -> None:
    """Measure a case and say it; a competitor that fails is named with its reason."""
    tiny = check.device == "cpu"
    settings = argparse.Namespace(device=check.device, provider=FEW if tiny else None, threads=2, tiny=tiny, quick=tiny)
    settings.seconds = 0.0 if tiny else SECONDS
    left_out: list[str] = []

    def refused(name: str, error: Exception) -> None:
        left_out.append(f"{name}: {first_line(error)}")

    rows = list(run.measured(case, settings, check.around, refused))
    results.merge(results.path_of(check.around, check.out), rows)
    for name in dict.fromkeys(row.provider for row in rows):
        check.row(run.title(case), name, *cells([row for row in rows if row.provider == name]))
    for text in left_out:
        check.row(run.title(case), f"left out: {text}", *[""] * 6)
    for row in rows:
        if row.metric == "wrong" and row.provider == "ours":
            check.fail(f"bench, {run.title(case)}: ours is wrong, error {row.p50:.2e}")


def cells(rows: Sequence[Row]) -> list[str]:
    """The figures of one provider."""
    found = {(row.mode, row.metric): row for row in rows}

    def figure(mode: str, metric: str, form: str = ".4g") -> str:
        row = found.get((mode, metric))
        return "" if row is None else format(row.p50, form)

    both = found.get(("both", "time"))
    spread = "" if both is None else f"{both.p50:.4g} ({both.p20:.4g} .. {both.p80:.4g})"
    wrong = figure("both", "wrong", ".1e")
    times = [figure("forward", "time"), figure("backward", "time"), spread, figure("graph", "time")]
    error = f"WRONG {wrong}" if wrong else figure("both", "error", ".1e")
    return [*times, figure("both", "peak extra memory", ",.0f"), error]
