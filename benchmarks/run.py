"""lt-kernels bench: measures cases and writes benchmarks/results/<device>.csv; --growth: results/growth/<device>.csv.

Times are taken only of a provider whose value and gradients agree with float64; one that does not is reported as wrong.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import capture, check, growth, measure, memory, results
from benchmarks.cases import Case, cases
from benchmarks.problems import problem
from benchmarks.providers import NAMES, Provider, providers
from benchmarks.results import Row, first_line
from lt_kernels import doctor
from lt_kernels.system import storage
from lt_kernels.system.parsing import Parser

UNITS = {"error": "relative", "wrong": "relative", "time": "ms", "peak extra memory": "MiB"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen cases; 1 if a provider of ours was wrong."""
    chosen = arguments(argv)
    if chosen.plot:
        return _plot(chosen)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # of torch's compiler, to its authors
    torch.set_num_threads(chosen.threads)
    around, refused = doctor.machine(chosen.device), said if chosen.device == "cuda" else None
    path = results.path_of(around, chosen.out / growth.FOLDER if chosen.growth else chosen.out)
    selected = selection(chosen)
    ok = True
    with storage.held(path.parent):  # measuring takes long: a folder that cannot be written is known before
        pass
    for position, case in enumerate(selected, 1):
        print(f"[{position}/{len(selected)}] {title(case)}", flush=True)
        rows = list(measured(case, chosen, around, refused))
        print("\n".join(map(line, rows)), flush=True)
        ok &= not any(row.metric == "wrong" and row.provider == "ours" for row in rows)
        results.merge(path, rows)
    print(f"wrote {path}")
    return 0 if ok else 1


def _plot(chosen: argparse.Namespace) -> int:
    """Draw what is measured; nothing to draw is an error."""
    try:
        from benchmarks.tables import pictures
    except ModuleNotFoundError as error:  # the one command that needs an extra
        print(f"lt-kernels bench --plot: {error}; pip install '.[train]' brings matplotlib")
        return 2
    drawn = pictures.draw(chosen.out, chosen.pictures)
    print("\n".join(f"wrote {path}" for path in drawn) or f"nothing is measured in {chosen.out}")
    return 0 if drawn else 1


def said(name: str, error: Exception) -> None:
    """Name the competitor that is left out of a case, and why."""
    print(f"    {name:<14}left out: {first_line(error)}", flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="lt-kernels bench", description="Measure the operators.")
    parser.add_argument("--operator", action="append", help="only this operator (may be repeated)")
    parser.add_argument("--case", action="append", help="only this shape, or named loss (may be repeated)")
    parser.add_argument("--provider", action="append", choices=NAMES, help="only this provider (may be repeated)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    parser.add_argument("--seconds", type=float, default=1.5, help="work per provider and case, after the warm-up")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds each, no memory: for a first look")
    parser.add_argument("--tiny", action="store_true", help="every case at a tiny size: that everything runs")
    parser.add_argument("--growth", action="store_true", help="cost along N, C and d instead, ours and eager")
    parser.add_argument("--plot", action="store_true", help="draw what is measured, and measure nothing")
    parser.add_argument("--pictures", type=Path, default=results.ROOT / "docs" / "pictures", help="where --plot draws")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results file")
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.seconds = 0.2
    if chosen.growth:
        chosen.provider = chosen.provider or list(growth.PROVIDERS)
    return chosen


def selection(chosen: argparse.Namespace) -> list[Case]:
    """The cases that --operator and --case ask for; an error where there is none."""
    every = growth.cases(chosen.device, chosen.tiny) if chosen.growth else cases(chosen.device)
    found = [
        case.tiny() if chosen.tiny and not chosen.growth else case
        for case in every
        if (not chosen.operator or case.operator in chosen.operator) and (not chosen.case or case.name in chosen.case)
    ]
    if not found:
        operators, names = sorted({case.operator for case in every}), sorted({case.name for case in every})
        raise SystemExit(f"no such case; --operator is one of {operators}, --case one of {names}")
    return found


Refused = Callable[[str, Exception], None]


def measured(
    case: Case, chosen: argparse.Namespace, around: Mapping[str, Any], refused: Refused | None = None
) -> Iterator[Row]:
    """The rows of one case: errors, then the times of those that are right, then memory.

    A competitor that fails is handed to `refused`, if that is given, and left out.
    """
    torch._dynamo.reset()  # else the shapes of earlier cases count towards the limit of recompilations
    posed = problem(case, chosen.device)
    serving = providers(posed, chosen.provider or NAMES)
    judged = check.errors(posed, [provider.name for provider in serving], refused)
    for name, (worst, right) in judged.items():
        yield _row(case, name, "both", around, "error" if right else "wrong", 3 * [worst], 1)
    right = [p for p in serving if p.is_limit or judged.get(p.name, (0.0, False))[1]]
    seconds = min(chosen.seconds, 0.4) if case.operator == "losses" else chosen.seconds
    timed = measure.interleaved(right, chosen.device, seconds, refused)
    if chosen.device == "cuda" and case.is_quick:
        measure.replays(_graphs([p for p in right if p.name in timed], refused), timed, seconds)
    for name, samples in timed.items():
        for mode, taken in samples.modes():
            yield _row(case, name, mode, around, "time", measure.quantiles(taken, unit=1e-3), len(taken))
    if case.measures_memory and not chosen.quick:
        for provider in (p for p in right if p.name in timed and not p.is_limit):
            peak = _peak(case, provider, chosen)
            if peak is not None:
                yield _row(case, provider.name, "both", around, "peak extra memory", 3 * [peak / 2**20], 1)


def _peak(case: Case, provider: Provider, chosen: argparse.Namespace) -> int | None:
    """Bytes beyond the inputs; a GPU's allocator tells them in this process, a CPU's system only in a fresh one."""
    if chosen.device == "cuda":
        return memory.cuda_peak(provider)
    return memory.peak_extra(case, provider.name, chosen.device, chosen.threads)


def _graphs(serving: Sequence[Provider], refused: Refused | None) -> dict[str, Any]:
    """A CUDA graph of forward and backward of those that never wait for the device."""
    found = {}
    for provider in serving:

        def run(provider: Provider = provider) -> object:
            return provider.backward(provider.forward())

        waits = capture.syncs(run)
        if not waits:
            found[provider.name] = capture.captured(run)[0]
        elif refused is not None:
            refused(provider.name, RuntimeError(f"no graph: {waits}"))
    return found


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


def title(case: Case) -> str:
    """A case in words."""
    return f"{case.operator} {case.name} {case.dtype_name} {case.sizes}"


def line(row: Row) -> str:
    """One measurement for the terminal."""
    spread = f"({row.p20:.3g} .. {row.p80:.3g}, {row.samples} samples)" if row.metric == "time" else ""
    return f"    {row.provider:<14}{row.mode:<10}{row.metric:<18}{row.p50:>10.4g} {row.unit:<9}{spread}".rstrip()


if __name__ == "__main__":
    raise SystemExit(main())
