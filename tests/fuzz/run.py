"""A number of cases of one function from one seed; a case that fails is made smaller before it is shown."""

from __future__ import annotations

import random
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from fuzz.case import Case
from fuzz.draw import Draw, case_of
from fuzz.verdict import Wrong, judged


@dataclass
class Tally:
    """What a run of cases showed."""

    cases: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by name, dtype and wing
    skipped: Counter[str] = field(default_factory=Counter)
    worst: dict[tuple[str, str], float] = field(default_factory=dict)  # by name and dtype, in tolerances
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count what another run showed, too."""
        self.cases += other.cases
        self.skipped += other.skipped
        self.failures += other.failures
        for key, worst in other.worst.items():
            self.worst[key] = max(worst, self.worst.get(key, 0.0))


def surroundings() -> None:
    """What every case runs under: new memory full of NaN, one thread, warnings as errors."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    warnings.simplefilter("error")


def problem_of(case: Case) -> str:
    """What is wrong with the answer to a case; "" if nothing is."""
    try:
        judged(case)
    except Wrong as wrong:
        return str(wrong)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return ""


def smaller(choices: list[int]) -> Iterator[tuple[int, ...]]:
    """Lists of choices that are simpler: one number 0, half, or one less."""
    for place, number in enumerate(choices):
        for less in sorted({0, number // 2, number - 1} - {number, -1}):
            yield (*choices[:place], less, *choices[place + 1 :])


def shrunk(choices: list[int], make: Callable[[Draw], Case], fails: Callable[[Case], bool]) -> Case:
    """The simplest case that is found to fail, by one choice after another."""
    best = Draw(given=tuple(choices))
    case, again = make(best), True
    while again:
        again = False
        for given in smaller(best.choices):
            draw = Draw(given=given)
            simpler = make(draw)
            if simpler != case and sum(draw.choices) < sum(best.choices) and fails(simpler):
                best, case, again = draw, simpler, True
                break
    return case


def kind_of(problem: str) -> str:
    """The first words of a problem: a smaller case must fail in the same way."""
    return problem.split(":")[0].split("\n")[0][:40]


def report(choices: list[int], function: str, seed: int, problem: str) -> str:
    """A failure, as small as it gets, with what runs it again."""
    case = shrunk(choices, lambda d: case_of(d, function), lambda c: kind_of(problem_of(c)) == kind_of(problem))
    return f"seed {seed}: a case for tests/fuzz/corpus.py:\n{case!r}\n{problem_of(case)}"


def run(function: str, seed: int, cases: int, most_failures: int = 1) -> Tally:
    """Judge that many cases of one function, drawn from that seed."""
    generator, tally = random.Random(f"{function} {seed}"), Tally()
    for _ in range(cases):
        draw = Draw(generator)
        case = case_of(draw, function)
        try:
            verdict = judged(case)
        except Exception:
            tally.failures.append(report(draw.choices, function, seed, problem_of(case)))
            if len(tally.failures) >= most_failures:
                break
            continue
        if verdict.skipped:
            tally.skipped[verdict.skipped] += 1
            continue
        tally.cases[case.name, case.dtype, case.wing] += 1
        place = case.name, case.dtype
        tally.worst[place] = max(verdict.worst, tally.worst.get(place, 0.0))
    return tally
