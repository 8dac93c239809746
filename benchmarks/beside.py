"""How much slower a call gets beside a busy process, as a data loader's worker is: ours and eager, in one run.

    python -m benchmarks.beside                     four calls of a step at the sizes of iNaturalist and ImageNet-LT
    python -m benchmarks.beside --case lwr-inat
    python -m benchmarks.beside --tiny              that everything runs

Where threads meet at a barrier, all of them wait for the one that has lost its core: a slowdown beyond what the other
process takes away shows barriers. The busy process is stopped and continued, so that what is measured alone and beside
it is measured in turns. Times and slowdowns go to benchmarks/results/beside/<device>.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import check, measure, results
from benchmarks.cases import SHAPES, Case
from benchmarks.measure import Samples
from benchmarks.problems import problem
from benchmarks.providers import Provider, providers
from benchmarks.results import Row
from benchmarks.run import title
from lt_kernels import doctor

FOLDER = "beside"
PROVIDERS = ("ours", "eager")
ROUNDS = 2
BAR = 1.3  # how much more than eager ours may slow down
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:  # it does not outlive who measures
    sum(range(10**6))
"""
CASES = tuple(
    Case(operator, name, *SHAPES[name])
    for operator, name in (
        ("logit_weight_repulsion", "lwr-inat"),
        ("lade_regularizer", "inat"),
        ("offset_cross_entropy", "imagenet-4096"),
        ("linear_cross_entropy", "inat"),
    )
)

NAMES = sorted({case.name for case in CASES})


class Busy:
    """A process that keeps one core busy, unless it is paused."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", BUSY])
        self.process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let it run for a while."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen cases; 1 if ours was wrong."""
    chosen = arguments(argv)
    torch.set_num_threads(chosen.threads)
    around = doctor.machine("cpu")
    path = results.path_of(around, chosen.out / FOLDER)
    ok = True
    with Busy() as busy:
        for case in (case for case in CASES if not chosen.case or case.name in chosen.case):
            posed = case.tiny() if chosen.tiny else case
            print(title(posed), flush=True)
            if not check.errors(problem(case.tiny(), "cpu"), ["ours"])["ours"][1]:
                print("    ours is wrong and gets no time")
                ok = False
                continue
            rows = list(measured(posed, busy, chosen.seconds, around))
            print("\n".join(map(line, rows)), flush=True)
            results.merge(path, rows)
    print(f"wrote {path}")
    return 0 if ok else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.beside", description="Measure calls beside a busy process.")
    parser.add_argument("--case", action="append", choices=NAMES, help="only this shape")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    parser.add_argument("--seconds", type=float, default=1.5, help="work per provider, alone and beside")
    parser.add_argument("--tiny", action="store_true", help="every case at a tiny size: that everything runs")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help=f"the results go to its folder {FOLDER}")
    return parser.parse_args(argv)


def measured(case: Case, busy: Busy, seconds: float, around: Mapping[str, Any]) -> Iterator[Row]:
    """The times of each provider, alone and beside; how often one is the other; and ours against eager's."""
    alone, beside = times(providers(problem(case, "cpu"), PROVIDERS), busy, seconds)
    slower = {}
    for name in PROVIDERS:
        for mode, taken in (("alone", alone[name].both), ("beside", beside[name].both)):
            yield row(case, name, mode, around, "time", "ms", measure.quantiles(taken, 1e-3), len(taken))
        once = statistics.median(alone[name].both)
        points = measure.quantiles(beside[name].both, once)
        slower[name] = points[0]
        yield row(case, name, "beside", around, "slowdown", "times", points, len(beside[name].both))
    ratio = slower["ours"] / slower["eager"]
    yield row(case, "ours", "beside", around, "slowdown by eager's", "times", 3 * [ratio], 1)


def times(serving: Sequence[Provider], busy: Busy, seconds: float) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Samples of every provider alone, and beside the busy process, in turns."""
    alone, beside = ({one.name: Samples() for one in serving} for _ in range(2))
    turns = [(alone, contextlib.nullcontext), (beside, busy.running)] * ROUNDS
    with measure.quiet():
        for into, around in turns:
            with around():
                found = measure.interleaved(serving, "cpu", seconds / ROUNDS)
            for name, samples in found.items():
                into[name].forward += samples.forward
                into[name].backward += samples.backward
    return alone, beside


def row(
    case: Case,
    who: str,
    mode: str,
    around: Mapping[str, Any],
    metric: str,
    unit: str,
    points: Sequence[float],
    samples: int,
) -> Row:
    """One figure, for the results file."""
    place = {"operator": case.operator, "case": case.name, "dtype": case.dtype_name, "sizes": case.sizes}
    figure = {"p50": points[0], "p20": points[1], "p80": points[2], "samples": samples}
    return Row(**place, **figure, provider=who, mode=mode, metric=metric, unit=unit, **around)


def line(row: Row) -> str:
    """One figure for the terminal."""
    said = f"    {row.provider:<8}{row.mode:<8}{row.metric:<20}{row.p50:>10.4g} {row.unit:<6}"
    if row.metric == "slowdown by eager's":
        return f"{said}{'within' if row.p50 <= BAR else 'above'} {BAR:g}"
    return f"{said}({row.p20:.3g} .. {row.p80:.3g}, {row.samples} samples)"


if __name__ == "__main__":
    raise SystemExit(main())
