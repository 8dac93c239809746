"""lt-kernels bench: measures cases and writes benchmarks/results/<device>.csv.

Times are taken only of a provider whose value and gradients agree with float64; one that does not is reported as wrong.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import check, measure, memory, results
from benchmarks.cases import Case, cases
from benchmarks.problems import problem
from benchmarks.providers import LIMITS, NAMES, providers
from benchmarks.results import Row
from lt_kernels import doctor

UNITS = {"error": "relative", "wrong": "relative", "time": "ms", "peak extra memory": "MiB"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen cases; 1 if a provider of ours was wrong."""
    chosen = arguments(argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # of torch's compiler, to its authors
    torch.set_num_threads(chosen.threads)
    around = doctor.machine(chosen.device)
    path = results.path_of(around, chosen.out)
    selected = selection(chosen)
    ok = True
    for position, case in enumerate(selected, 1):
        print(f"[{position}/{len(selected)}] {case.operator} {case.name} {case.dtype_name} {case.sizes}", flush=True)
        rows = list(measured(case, chosen, around))
        print("\n".join(map(line, rows)), flush=True)
        ok &= not any(row.metric == "wrong" and row.provider == "ours" for row in rows)
        results.merge(path, rows)
    print(f"wrote {path}")
    return 0 if ok else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="lt-kernels bench", description="Measure the operators.")
    parser.add_argument("--operator", action="append", help="only this operator (may be repeated)")
    parser.add_argument("--case", action="append", help="only this shape, or named loss (may be repeated)")
    parser.add_argument("--provider", action="append", choices=NAMES, help="only this provider (may be repeated)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    parser.add_argument("--seconds", type=float, default=1.5, help="work per provider and case, after the warm-up")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds each, no memory: for a first look")
    parser.add_argument("--tiny", action="store_true", help="every case at a tiny size: that everything runs")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results file")
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.seconds = 0.2
    return chosen


def selection(chosen: argparse.Namespace) -> list[Case]:
    """The cases that --operator and --case ask for; an error where there is none."""
    every = cases(chosen.device)
    found = [
        case.tiny() if chosen.tiny else case
        for case in every
        if (not chosen.operator or case.operator in chosen.operator) and (not chosen.case or case.name in chosen.case)
    ]
    if not found:
        operators, names = sorted({case.operator for case in every}), sorted({case.name for case in every})
        raise SystemExit(f"no such case; --operator is one of {operators}, --case one of {names}")
    return found


def measured(case: Case, chosen: argparse.Namespace, around: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one case: errors, then the times of those that are right, then memory."""
    torch._dynamo.reset()  # else the shapes of earlier cases count towards the limit of recompilations
    posed = problem(case, chosen.device)
    serving = providers(posed, chosen.provider or NAMES)
    judged = check.errors(posed, [provider.name for provider in serving])
    for name, (worst, right) in judged.items():
        yield _row(case, name, "both", around, "error" if right else "wrong", 3 * [worst], 1)
    right = [p for p in serving if p.is_limit or judged[p.name][1]]
    seconds = min(chosen.seconds, 0.4) if case.operator == "losses" else chosen.seconds
    for name, samples in measure.interleaved(right, chosen.device, seconds).items():
        for mode, taken in samples.modes():
            yield _row(case, name, mode, around, "time", measure.quantiles(taken, unit=1e-3), len(taken))
    if case.measures_memory and not chosen.quick:
        for name in (p.name for p in right if p.name not in LIMITS):
            peak = memory.peak_extra(case, name, chosen.device, chosen.threads, chosen.tiny)
            if peak is not None:
                yield _row(case, name, "both", around, "peak extra memory", 3 * [peak / 2**20], 1)


def _row(
    case: Case, who: str, mode: str, around: Mapping[str, Any], metric: str, points: Sequence[float], samples: int
) -> Row:
    p50, p20, p80 = points
    return Row(
        operator=case.operator,
        case=case.name,
        provider=who,
        mode=mode,
        dtype=case.dtype_name,
        sizes=case.sizes,
        metric=metric,
        unit=UNITS[metric],
        p50=p50,
        p20=p20,
        p80=p80,
        samples=samples,
        **around,
    )


def line(row: Row) -> str:
    """One measurement for the terminal."""
    spread = f"({row.p20:.3g} .. {row.p80:.3g}, {row.samples} samples)" if row.metric == "time" else ""
    return f"    {row.provider:<14}{row.mode:<10}{row.metric:<18}{row.p50:>10.4g} {row.unit:<9}{spread}".rstrip()


if __name__ == "__main__":
    raise SystemExit(main())
