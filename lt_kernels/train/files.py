"""The files of a run: which folder is whose, and writing them whole or not at all. Imports no trainer."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from lt_kernels.train.config import ConfigError, TrainConfig, read_config, write_config

CONFIG = "config.yaml"
RESULT = "result.json"


def prepare_folder(config: TrainConfig, folder: Path, resume: bool) -> None:
    """Make the folder of a new run, or check that what it holds is the same run.

    Errors: ConfigError naming --out (a run is there, and it is not to be resumed) or the setting that differs from
    that run's.
    """
    stored = folder / CONFIG
    if not stored.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, stored)
        return
    if not resume:
        raise ConfigError(
            f"--out {str(folder)!r} holds a run already: continue it with --resume, or choose another folder"
        )
    before = read_config(stored).as_dict()
    for key, value in config.as_dict().items():
        if before[key] != value:
            raise ConfigError(f"--resume: {key} must be {before[key]!r}, as in {str(stored)!r}, got {value!r}")


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run, or None where it is not finished."""
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename over: a kill leaves the old file or the new one."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_rows(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`; a cell left empty is left out."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
