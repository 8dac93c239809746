"""python -m benchmarks.gpu.sheets: the predicted time of each goal's call, from compiled code and traced launches."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from benchmarks.gpu.sheets import model, trace
from benchmarks.gpu.sheets.goals import GOALS, Goal
from benchmarks.gpu.sheets.trace import Kernel, Made
from benchmarks.tables.markdown import markdown

UNITS = ("memory", "cache", "matrix", "issue", "special")


@dataclass
class Sheet:
    """A goal and the kernels of its call."""

    goal: Goal
    kernels: list[Kernel]

    @property
    def milliseconds(self) -> float:
        """What all kernels take, one after the other."""
        return sum(one.times.total for one in self.kernels) * 1e3

    def summary(self) -> list[str]:
        """The row of the goal."""
        units = [sum(getattr(one.times, unit) for one in self.kernels) * 1e3 for unit in UNITS]
        sums = [sum(one.bytes for one in self.kernels) / 1e6, sum(one.flops for one in self.kernels) / 1e9]
        numbers = [f"{value:,.0f}" for value in sums] + [f"{value:.3g}" for value in units]
        met = "yes" if self.milliseconds <= self.goal.milliseconds else "**no**"
        wanted = f"{self.goal.milliseconds:.3g} ({self.goal.source})"
        floor = model.floor(self.goal.case, self.goal.pairs.number(self.goal.case.classes)) * 1e3
        least = f"{floor:.3g}" + (": not to be met" if floor > self.goal.milliseconds else "")
        return [self.goal.title, str(len(self.kernels)), *numbers, f"{self.milliseconds:.3g}", wanted, met, least]

    def details(self) -> list[list[str]]:
        """A row for each kernel that is launched, the same ones together."""
        places: dict[str, list[Kernel]] = {}
        for one in self.kernels:
            places.setdefault(f"{one.name}{' (serialised)' if one.serial else ''}", []).append(one)
        return [self.detail(name, some) for name, some in places.items()]

    def detail(self, name: str, some: list[Kernel]) -> list[str]:
        """The row of one kernel."""
        units = [sum(getattr(one.times, unit) for one in some) * 1e6 for unit in (*UNITS, "total")]
        each = [some[0].instructions, some[0].special]
        sums = [sum(one.bytes for one in some) / 1e6, sum(one.flops for one in some) / 1e9]
        numbers = [f"{value:,.1f}" if value else "" for value in (*sums, *each, *units)]
        return [self.goal.title, f"`{name}`", str(len(some)), *numbers]


def sheets(wanted: Sequence[Goal], workers: int) -> list[Sheet]:
    """Trace all calls, compile the kernels, and predict."""
    traces = [trace.traced(goal) for goal in wanted]
    missing = [goal.title for goal, (launches, _) in zip(wanted, traces) if not launches]
    if missing:
        raise RuntimeError(f"no kernel of ours is launched by {missing}")
    jobs = trace.jobs(traces)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        machine: dict[str, Made] = dict(zip(jobs, pool.map(trace.made, jobs.values())))
    return [Sheet(goal, trace.kernels(*one, machine, goal.pairs)) for goal, one in zip(wanted, traces)]


SUMMARY = ("goal", "launches", "MB", "GFLOP", "memory, ms", "cache", "matrix", "issue", "special", "predicted, ms",
           "goal, ms", "met", "floor, ms")  # fmt: skip
DETAILS = ("goal", "kernel", "launches", "MB", "GFLOP", "instructions an element", "special", "memory, us", "cache",
           "matrix", "issue", "special", "predicted, us")  # fmt: skip


def tables(found: Sequence[Sheet]) -> dict[str, str]:
    """The tables of the document by their names."""
    return {
        "gpu-goals": markdown(SUMMARY, [one.summary() for one in found]),
        "gpu-sheets": markdown(DETAILS, [row for one in found for row in one.details()]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into docs/kernels/gpu.md."""
    from benchmarks.gpu.compile import write

    parser = argparse.ArgumentParser("python -m benchmarks.gpu.sheets", description="Predict the goals' times.")
    parser.add_argument("--goal", action="append", help="only goals whose title begins like this (may be repeated)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/kernels/gpu.md")
    chosen = parser.parse_args(argv)
    wanted = [goal for goal in GOALS if not chosen.goal or goal.title.startswith(tuple(chosen.goal))]
    made = tables(sheets(wanted, chosen.workers))
    print("\n\n".join(made.values()))
    if chosen.write:
        write(made)
    return 0


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # triton reads it when it is imported, which is later
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TRITON_CACHE_DIR", folder)
        sys.exit(main())
