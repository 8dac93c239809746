"""Some cases of every function in each run of the suite, and all that ever failed."""

from __future__ import annotations

import pytest

from fuzz.case import Case
from fuzz.choices import FUNCTIONS
from fuzz.corpus import CORPUS
from fuzz.run import run
from fuzz.verdict import judged

PARTS = 2
SUITE = 2000 // (len(FUNCTIONS) * PARTS)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cases(function: str, part: int) -> None:
    """None has a wrong answer; `make fuzz` draws more."""
    tally = run(function, part, SUITE)
    assert not tally.failures, tally.failures[0]
    assert sum(tally.cases.values()) > 0.5 * SUITE, tally.skipped


@pytest.mark.parametrize("case", CORPUS, ids=repr)
def test_past_failures(case: Case) -> None:
    """What was wrong once is right."""
    judged(case)
