"""Where and with what a comparison was made: the facts that its table must carry when it leaves the machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device() -> str:
    """The GPU's name where the trainer finds one, else the processor's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def commit() -> str:
    """The commit of the sources, with a plus sign where files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        words = [
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            ["git", "-C", str(root), "status", "--porcelain", "-uno"],
        ]
        head, changes = (
            subprocess.run(word, capture_output=True, text=True, check=True, timeout=20).stdout for word in words
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.strip() + ("+" if changes.strip() else "")


def facts(result: Mapping[str, Any], seeds: int, jobs: int) -> dict[str, str | int]:
    """Plain facts about a comparison, from one of its results."""
    config, counts = result["config"], result["class_counts"]
    units = result.get("units", {"counts": "samples", "groups": "samples"})
    return {
        "data": config["data"],
        "classes": len(counts),
        "class_counts": f"{max(counts)} to {min(counts)}",
        "counted": units["counts"],
        "grouped": units["groups"],
        "training_samples": result["samples"]["train"],
        "test_samples": result["samples"]["test"],
        "network": config["network"],
        "epochs": config["epochs"],
        "seeds": seeds,
        "device": device(),
        "torch": result["torch"],
        "threads_a_run": result["threads"],
        "runs_at_a_time": jobs,
        "commit": commit(),
    }
