"""The table of goals: what is compared, and on which side of a goal a measured figure lies."""

from __future__ import annotations

import pytest

from benchmarks import results
from benchmarks.cases import SHAPES, cases
from benchmarks.results import Row
from benchmarks.tables import goals
from benchmarks.tables.goals import Goal

AROUND = {"device": "a CPU", "threads": 2, "torch": "2.13.0", "triton": "", "commit": "abc", "date": "2026-01-01"}


def row(goal: Goal, provider: str, value: float, metric: str = "time") -> Row:
    where = {"operator": goal.operator, "case": goal.case, "provider": provider, "mode": "both", "dtype": "float32"}
    return Row(**where, sizes="", metric=metric, unit="", p50=value, p20=value, p80=value, samples=1, **AROUND)


def words(goal: Goal, *rows: Row) -> tuple[str, str]:
    lines = goals.table(list(rows)).splitlines()
    (cells,) = [
        line.strip("| ").split(" | ") for line in lines if f"`{goal.operator}` | {goal.case} | {goal.words} |" in line
    ]
    return cells[3], cells[4]


@pytest.mark.parametrize(("theirs", "judged"), [(4.0, "met"), (3.99, "**not met**")])
def test_at_least_so_many_times_as_fast(theirs: float, judged: str) -> None:
    goal = goals.times(goals.OFFSET, "inat", "eager", 4)
    assert words(goal, row(goal, "ours", 1.0), row(goal, "eager", theirs)) == (f"{theirs:.3g}x", judged)


@pytest.mark.parametrize(("ours", "judged"), [(1.6, "met"), (1.7, "**not met**")])
def test_at_most_so_many_times_the_limit(ours: float, judged: str) -> None:
    goal = goals.within(goals.LINEAR, "faces", "products", 1.6)
    assert words(goal, row(goal, "ours", ours), row(goal, "products", 1.0)) == (f"{ours:.3g}x", judged)


def test_memory_leaves_the_gradients_out() -> None:
    goal = goals.memory(goals.COSINE, "inat", "eager", 0.1)
    rows, classes, size = SHAPES["inat"]
    gradients = 4 * (rows + classes) * size / 2**20
    measured = [row(goal, who, gradients + more, goals.MEMORY) for who, more in (("ours", 11.0), ("eager", 100.0))]
    assert words(goal, *measured) == ("11 %", "**not met**")


def test_what_was_not_measured_is_said() -> None:
    goal = goals.times(goals.REPULSION, "lwr-inat", "eager", 20)
    assert goals.table([row(goal, "ours", 1.0)]).count("not measured") == len(goals.GOALS)


def test_every_goal_is_of_a_case_that_is_measured() -> None:
    known = {(case.operator, case.name) for case in cases()}
    assert {(goal.operator, goal.case) for goal in goals.GOALS} <= known


def test_no_file_no_table(tmp_path) -> None:
    assert goals.tables(tmp_path) == ""
    assert results.read(tmp_path / "none.csv") == []
