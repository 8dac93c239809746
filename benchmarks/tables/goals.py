"""The goals for a CPU beside what was measured: a table for docs/kernels/benchmarks.md, from the results file alone.

A goal compares ours with another provider of the same case in the same run: a share of its time, or of its memory less
the gradients, which everyone has to hold. "met" is decided by the figures, not by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from benchmarks import results
from benchmarks.cases import SHAPES
from benchmarks.registry import NAMED
from benchmarks.results import Row
from benchmarks.tables.markdown import markdown

Figures = dict[tuple[str, str, str, str], float]  # operator, case, provider, metric
TIME, MEMORY = "time", "peak extra memory"
HEADER = ("operator", "shape", "goal", "measured", "")


@dataclass(frozen=True)
class Goal:
    """What ours is compared with, in words and as a function of the figures; None where one was not measured."""

    operator: str
    case: str
    words: str
    measure: Callable[[Figures], float | None]
    unit: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        """Whether a measured value is on the right side."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def times(operator: str, case: str, provider: str, least: float) -> Goal:
    """At least so many times as fast as a provider."""

    def measure(figures: Figures) -> float | None:
        ours, theirs = (figures.get((operator, case, who, TIME)) for who in ("ours", provider))
        return None if ours is None or theirs is None else theirs / ours

    return Goal(operator, case, f"at least {least:g} times as fast as {_named(provider)}", measure, "x", least=least)


def within(operator: str, case: str, limit: str, most: float) -> Goal:
    """At most so many times the time of the work that nobody can do without."""

    def measure(figures: Figures) -> float | None:
        ours, theirs = (figures.get((operator, case, who, TIME)) for who in ("ours", limit))
        return None if ours is None or theirs is None else ours / theirs

    return Goal(operator, case, f"at most {most:g} times {_named(limit)}", measure, "x", most=most)


def memory(operator: str, case: str, provider: str, most: float) -> Goal:
    """At most this share of a provider's memory, the gradients not counted."""

    def measure(figures: Figures) -> float | None:
        ours, theirs = (figures.get((operator, case, who, MEMORY)) for who in ("ours", provider))
        gradients = gradient_bytes(operator, case) / 2**20
        return None if ours is None or theirs is None else 100 * max(0.0, ours - gradients) / (theirs - gradients)

    words = f"memory beyond the gradients at most {100 * most:g} % of that of {_named(provider)}"
    return Goal(operator, case, words, measure, " %", most=100 * most)


def at_most(operator: str, case: str, mebibytes: float) -> Goal:
    """At most so much memory, the gradient counted."""
    figure = (operator, case, "ours", MEMORY)
    return Goal(operator, case, f"memory at most {mebibytes:,.0f} MiB", lambda f: f.get(figure), " MiB", most=mebibytes)


def beyond(operator: str, case: str, provider: str, microseconds: float) -> Goal:
    """At most so many microseconds more than a provider."""

    def measure(figures: Figures) -> float | None:
        ours, theirs = (figures.get((operator, case, who, TIME)) for who in ("ours", provider))
        return None if ours is None or theirs is None else 1e3 * (ours - theirs)

    words = f"at most {microseconds:g} us more than {_named(provider)}"
    return Goal(operator, case, words, measure, " us", most=microseconds)


def gradient_bytes(operator: str, case: str) -> int:
    """Bytes of the float32 gradients that a call returns."""
    rows, classes, size = SHAPES[case]
    shapes = [(rows, size), (classes, size)] if operator in PRODUCTS else [(classes, size)]
    return sum(4 * prod(shape) for shape in shapes)


def _named(provider: str) -> str:
    names = {"compile": "torch.compile", "torch-chunked": "torch's chunked path", "clone": "a clone of the logits"}
    return names.get(provider, "the bare products" if provider == "products" else provider)


OFFSET, LINEAR, COSINE = "offset_cross_entropy", "linear_cross_entropy", "cosine_margin_cross_entropy"
REPULSION, PRODUCTS = "logit_weight_repulsion", (LINEAR, COSINE)
GOALS = (
    times(OFFSET, "inat", "eager", 4),
    times(OFFSET, "inat", "compile", 3),
    within(OFFSET, "inat", "clone", 2.2),
    *(
        times(OFFSET, case, who, goal)
        for case in ("inat-512", "imagenet-4096")
        for who, goal in (("eager", 5), ("compile", 3))
    ),
    within(COSINE, "inat", "products", 1.15),
    times(COSINE, "inat", "eager", 1.5),
    memory(COSINE, "inat", "eager", 0.1),
    *(within(operator, "faces", "products", 1.6) for operator in PRODUCTS),
    *(times(operator, "faces", "eager", 1.5) for operator in PRODUCTS),
    times(LINEAR, "faces", "torch-chunked", 10),
    memory(LINEAR, "faces", "torch-chunked", 1.0),
    times(REPULSION, "lwr-inat", "eager", 20),
    times(REPULSION, "lwr-inat", "compile", 10),
    memory(REPULSION, "lwr-inat", "eager", 0.05),
    at_most(REPULSION, "lwr-64k", 4096),
    beyond("losses", "CrossEntropyLoss", "eager", 30),
    *(times("losses", loss, "eager", 1) for loss in NAMED),
)


def tables(folder: Path) -> str:
    """A table for each CPU whose results lie in `folder`."""
    files = sorted(path for path in folder.glob("*threads.csv"))
    return "\n\n".join(table(rows) for rows in map(results.read, files) if rows)


def table(rows: Sequence[Row]) -> str:
    """The goals, the measured values, and whether they are met."""
    figures = {
        (row.operator, row.case, row.provider, row.metric): row.p50
        for row in rows
        if row.mode == "both" and row.dtype == "float32"
    }
    body = [_line(goal, goal.measure(figures)) for goal in GOALS]
    first = rows[0]
    caption = f"{first.device}, {first.threads} threads, torch {first.torch}, float32, forward and backward together."
    return caption + "\n\n" + markdown(HEADER, body)


def _line(goal: Goal, value: float | None) -> list[str]:
    where = [f"`{goal.case}`", "cifar"] if goal.operator == "losses" else [f"`{goal.operator}`", goal.case]
    if value is None:
        return [*where, goal.words, "", "not measured"]
    return [*where, goal.words, f"{value:,.3g}{goal.unit}", "met" if goal.met(value) else "**not met**"]
