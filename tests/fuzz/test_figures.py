"""What a run of the fuzz leaves, and the table that is made from it."""

from __future__ import annotations

from benchmarks.tables import reliability
from fuzz.__main__ import chunks, figures
from fuzz.choices import FUNCTIONS
from fuzz.run import Tally, run


def test_cases_are_shared_out() -> None:
    """Every function gets its part, from seeds of its own."""
    work = chunks(5000, 7)
    assert sum(cases for *_, cases in work) == 5000
    assert {function for function, *_ in work} == set(FUNCTIONS)
    assert len({(function, seed) for function, seed, _ in work}) == len(work)


def test_the_table_says_what_was_run() -> None:
    """Cases by name, dtype and kernels, their sum, and the worst error."""
    tally = Tally()
    for function in ("offset", "lade"):
        tally.add(run(function, 3, 12))
    found = figures(tally, 3, 2.0)
    table = reliability.fuzz_table(found)
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    lines = {cells[1].strip(" `"): cells for cells in rows}
    assert found["cases"] == sum(tally.cases.values()) > 12
    assert f"{found['cases']:,} cases judged from seed 3" in table
    assert int(lines["all"][9]) == found["cases"] == int(lines["offset"][9]) + int(lines["lade"][9])
    assert sum(map(int, lines["offset"][2:6])) == int(lines["offset"][9]) == sum(map(int, lines["offset"][6:9]))


def test_the_same_seed_draws_the_same_cases() -> None:
    """So a failure can be looked at again."""
    assert run("offset", 5, 10).cases == run("offset", 5, 10).cases
