"""A million classes over the processes of one machine: the time of a step, and a process's memory beside the formula's.

    python -m benchmarks.cluster.million

measures a sharded `CosineHead` with AdamW, on all classes and on a sample of them, into
benchmarks/results/cluster.json, and writes the tables of docs/cluster.md. Each measurement has new processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cluster import tables
from benchmarks.measure import quantiles
from benchmarks.results import ROOT
from lt_kernels import doctor
from lt_kernels.system import storage

PATIENCE = 900  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, keep what was measured, and write the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.cluster.million", description="One million classes.")
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256, help="of the whole batch")
    parser.add_argument("--world", type=int, default=2, help="processes")
    parser.add_argument("--steps", type=int, default=10, help="that are timed, after two that are not")
    parser.add_argument("--samples", type=float, nargs="+", default=[1.0, 0.1], help="shares of the classes")
    chosen = parser.parse_args(argv)
    sizes = {name: getattr(chosen, name) for name in ("features", "rows", "world", "steps")}
    about = {**doctor.machine(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    cases = itertools.product(chosen.classes, chosen.samples)
    rows = [measured({"classes": classes, **sizes, "sample": sample}) for classes, sample in cases]
    storage.write_whole(tables.RESULT, json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    return tables.main()


def measured(sizes: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step (of the slowest process) and bytes of a process (of the largest)."""
    with tempfile.TemporaryDirectory() as folder:
        told = json.dumps({**sizes, "store": str(Path(folder) / "store")})
        ranks = [_started(told, rank) for rank in range(sizes["world"])]
        try:
            said = [json.loads(rank.communicate(timeout=PATIENCE)[0].splitlines()[-1]) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    slowest = torch.tensor([one["seconds"] for one in said]).amax(0).tolist()
    p50, p20, p80 = quantiles(slowest)
    peak = max(one["peak"] for one in said)
    print(f"{sizes}: {p50:.2f} s a step ({p20:.2f} to {p80:.2f}), {peak / 2**20:,.0f} MiB a process", flush=True)
    return {**sizes, "seconds": [p50, p20, p80], "peak": peak, "before": max(one["before"] for one in said)}


def _started(told: str, rank: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "benchmarks.cluster.rank", told, str(rank)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    raise SystemExit(main())
