"""Runs of a second, and what two of them must have in common: every bit but the clock's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# LDAM's deferred weights come within the run; mixup draws from torch's generator at every step; 10 steps an epoch.
RECIPE = """
data: digits-lt
method: ldam-drw-lwr
method_options: {drw_start: 0.5, lwr_threshold: 0.0}
epochs: 2
batch_size: 32
lr: 0.05
warmup_epochs: 1
mixup_alpha: 0.5
checkpoint_steps: 4
threads: 1
"""


def recipe(folder: Path, **changes: object) -> Path:
    """A file with the recipe, some lines of it changed."""
    lines = dict(line.split(": ", 1) for line in RECIPE.strip().splitlines())
    path = folder / "recipe.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in {**lines, **changes}.items()))
    return path


def bits(folder: Path) -> dict[str, Any]:
    """The checkpoint, the rows and the result of a run, without times."""
    from lt_kernels.train.files.results import read_rows

    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    kept = ("state_dict", "optimizer_states", "callbacks", "loops", "global_step", "epoch")
    result = json.loads((folder / "result.json").read_text())
    return untimed({"rows": read_rows(folder), "result": result, **{name: checkpoint[name] for name in kept}})


def untimed(value: Any) -> Any:
    """A value without the entries that tell seconds."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if not str(key).startswith("seconds")}
    return [untimed(item) for item in value] if isinstance(value, (list, tuple)) else value


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal, tensors in every bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second))
    return first == second


def left_over(folder: Path) -> list[str]:
    """Names in a run's folder that a finished run does not have."""
    own = {"config.yaml", "last.ckpt", "metrics.csv", "result.json", "tensorboard"}
    return sorted(path.name for path in folder.iterdir() if path.name not in own)
