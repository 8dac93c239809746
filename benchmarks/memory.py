"""Peak extra memory of one forward and backward, in a fresh process: what it needs beyond its inputs.

On a CPU: the high-water mark of resident memory, reset just before (Linux), less what was resident then. On a GPU: the
allocator's peak less what was allocated. The gradients of the leaves are part of it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.cases import Case
from benchmarks.problems import problem
from benchmarks.providers import Provider, providers

ROOT = Path(__file__).resolve().parent.parent
# glibc then gives every block of 64 KiB and more back at once, so that an earlier run leaves nothing to be used again.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# A process that takes longer is not worth waiting for.
LIMIT = 300


def peak_extra(case: Case, provider: str, device: str, threads: int) -> int | None:
    """Bytes, or None where the system does not tell or the process failed."""
    words = [case.operator, case.name, case.loss or "-", case.dtype_name, provider, device]
    numbers = [threads, case.rows, case.classes, case.features]
    return fresh("benchmarks.memory", *words, *map(str, numbers))


def fresh(module: str, *arguments: str) -> int | None:
    """The number that a module prints in a process of its own; None if it prints none, fails or takes too long."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    answer = done.stdout.split()[-1]
    return int(answer) if answer.isdigit() else None


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def cpu_peak(provider: Provider) -> int | None:
    """Bytes by which one forward and backward raises the high-water mark; None where the mark cannot be reset."""

    def run() -> object:
        loss = provider.forward()
        return loss, provider.backward(loss)

    return peak_of(run)


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the high-water mark of this process, its result counted."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before = resident("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None
    made = work()
    peak = resident("VmHWM")
    del made
    return max(0, peak - before)


def cuda_peak(provider: Provider) -> int:
    """Bytes by which one forward and backward raises what the allocator holds."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = provider.forward()
    gradients = provider.backward(loss)
    torch.cuda.synchronize()
    del loss, gradients
    return torch.cuda.max_memory_allocated() - before


def _warm_up(case: Case, provider: str, device: str) -> None:
    """Load the libraries and start the threads on a tiny problem, so that they do not count."""
    for warm in providers(problem(case.tiny(), device), [provider]):
        warm.backward(warm.forward())


def main() -> int:
    """Measure one provider of one case and print the bytes; a process of its own, started by `peak_extra`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    for name in ("operator", "case", "loss", "dtype", "provider", "device"):
        parser.add_argument(name)
    for name in ("threads", "rows", "classes", "features"):
        parser.add_argument(name, type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sizes, dtype = (chosen.rows, chosen.classes, chosen.features), getattr(torch, chosen.dtype)
    case = Case(chosen.operator, chosen.case, *sizes, dtype, chosen.loss.strip("-"))
    _warm_up(case, chosen.provider, chosen.device)
    (provider,) = providers(problem(case, chosen.device), [chosen.provider])
    if chosen.provider == "compile":
        provider.backward(provider.forward())  # compiling is not part of a step
    print(cpu_peak(provider) if chosen.device == "cpu" else cuda_peak(provider))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
