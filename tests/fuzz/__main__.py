"""Many cases, in several processes: what `make fuzz` runs. A failure is shown with its seed, as small as it gets.

With --write the figures go to benchmarks/results/fuzz.json, from which `make readme` writes docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import RESULTS
from fuzz.choices import FUNCTIONS
from fuzz.run import Tally, run, surroundings
from lt_kernels import doctor

CHUNK = 250  # cases of one function and one seed


def chunks(cases: int, seed: int) -> list[tuple[str, int, int]]:
    """(function, seed, cases), each function with the same number."""
    share = -(-cases // len(FUNCTIONS))
    sizes = [CHUNK] * (share // CHUNK) + ([share % CHUNK] if share % CHUNK else [])
    return [(function, seed + i, size) for i, size in enumerate(sizes) for function in FUNCTIONS]


def figures(tally: Tally, seed: int, seconds: float) -> dict[str, Any]:
    """What is kept of a run."""
    about = doctor.machine("cpu")
    facts = {key: about[key] for key in ("device", "torch", "commit", "date")}
    rows = [
        {"name": name, "dtype": dtype, "wing": wing, "cases": number, "worst": round(tally.worst[name, dtype], 3)}
        for (name, dtype, wing), number in sorted(tally.cases.items())
    ]
    counted = {"cases": sum(tally.cases.values()), "failures": len(tally.failures), "seed": seed}
    return {**facts, **counted, "seconds": round(seconds), "skipped": dict(sorted(tally.skipped.items())), "rows": rows}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser("make fuzz", description="Judge random cases of every public function.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed where it is not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more after that time")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/fuzz.json")
    return parser.parse_args()


def run_all(work: list[tuple[str, int, int]], jobs: int, most_seconds: float) -> tuple[Tally, float]:
    """Every piece of work, or as much as is begun in that time; and the seconds that it took."""
    tally, start, done = Tally(), time.monotonic(), 0
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=surroundings) as pool:
        futures = [pool.submit(run, *one) for one in work]
        for future in as_completed(futures):
            if future.cancelled():
                continue
            found, done = future.result(), done + 1
            tally.add(found)
            for failure in found.failures:
                print(f"\n{failure}\n", flush=True)
            if done % 8 == 0 or done == len(work):
                passed = f"{sum(tally.cases.values()):,} passed, {sum(tally.skipped.values()):,} without an answer"
                print(f"{time.monotonic() - start:6.0f} s: {passed}, {len(tally.failures)} wrong", flush=True)
            if time.monotonic() - start > most_seconds:
                for waiting in futures:
                    waiting.cancel()
    return tally, time.monotonic() - start


def main() -> int:
    """Run the cases; 1 if one of them has a wrong answer."""
    chosen = arguments()
    seed = random.SystemRandom().randrange(2**31) if chosen.seed is None else chosen.seed
    print(f"{chosen.cases:,} cases from seed {seed}, {chosen.jobs} processes, torch {torch.__version__}", flush=True)
    tally, seconds = run_all(chunks(chosen.cases, seed), chosen.jobs, 60 * chosen.minutes)
    if chosen.write:
        text = json.dumps(figures(tally, seed, seconds), indent=1)
        Path(RESULTS / "fuzz.json").write_text(text + "\n", encoding="utf-8")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
