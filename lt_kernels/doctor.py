"""What this machine runs on: versions, instruction sets, and which kernels serve each operator and why."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import lt_kernels
from lt_kernels import ops
from lt_kernels.ops.backends.extension import instruction_sets
from lt_kernels.ops.budget import current_budget
from lt_kernels.ops.products import choice
from lt_kernels.ops.tiles import screening


def main(argv: Sequence[str] | None = None) -> int:
    """Print `report()`; the exit status is 0 because a slower kernel is not an error."""
    description = (
        "Print what this machine runs on: versions, instruction set, and the kernels that serve each operator."
    )
    argparse.ArgumentParser(prog="lt-kernels doctor", description=description).parse_args(argv)
    print(report())
    return 0


def report() -> str:
    """The whole report as text: facts about the machine, then one line per operator and device."""
    return "\n".join([*_facts(), "", *_kernels()])


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What a measured table has to name: device, threads, versions, commit and date, for "cpu" or "cuda"."""
    cpu = f"{cpu_name()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def device_name() -> str:
    """The GPU's name where torch can use one, else the CPU's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def commit(digits: int | None = None) -> str:
    """The short hash of the sources, of at least so many digits (git's own choice: None), with "+" where the code
    differs from it; "unknown" outside a git checkout.
    """
    short = _git("rev-parse", "--short" if digits is None else f"--short={digits}", "HEAD")
    changed = _git("status", "--porcelain", "--", "lt_kernels", "csrc", "setup.py", "benchmarks/*.py")
    return (short or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed: a checkout further up is another project's
        return ""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _facts() -> list[str]:
    loaded, instruction_set, reason = ops.extension_status()
    extension = f"loaded, serving with {instruction_set}" if loaded else f"not loaded: {reason}"
    threads = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    screened, why = screening(torch.empty(1, 64), 0.4)
    faster, because = choice()
    rows = [
        ("lt_kernels", f"{lt_kernels.__version__} in {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("triton", _version("triton")),
        ("CPU", f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {threads}"),
        ("GPU", _gpu()),
        ("C++ extension", extension),
        ("instructions", instruction_sets()),
        ("repulsion", f"tiles {'screened in int8' if screened else 'not screened'} on the CPU: {why}"),
        ("products", f"large float32 ones on the CPU by {'oneDNN' if faster else 'torch.mm'}: {because}"),
        ("memory budget", f"{current_budget() / 2**20:.0f} MiB of logits in linear and cosine operators"),
    ]
    return [f"{name:<14} {value}" for name, value in rows]


def _kernels() -> list[str]:
    status = [(operator, device, kernels, reason or "") for operator, device, kernels, reason in ops.kernels_status()]
    return _aligned([("operator", "device", "kernels", "why not a faster one"), *status])


def _aligned(table: Iterable[Sequence[str]]) -> list[str]:
    table = [list(map(str, row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """The model's name where the system tells it (Linux), else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that this build of torch can use"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


if __name__ == "__main__":
    raise SystemExit(main())
