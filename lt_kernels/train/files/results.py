"""Result and rows of a run as its files hold them, checked: each error is one line that names the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lt_kernels.system.storage import read_regular
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import METRICS

MOST = 2**28  # bytes of a file: two numbers a class, for a million of them, are a tenth of that
NEEDED = ("epoch", "step", "loss", "seconds")  # columns of metrics.csv

Number = (int, float)
# what a result holds: a kind, or (list or dict, the kind of what is in it)
SHAPE: Mapping[str, Any] = {
    "config": dict,
    "accuracy": (dict, Number),
    "per_class": (list, Number),
    "class_counts": (list, int),
    "samples": (dict, int),
    "parameters": int,
    "seconds_per_epoch": Number,
    "seconds": Number,
    "torch": str,
    "threads": int,
}


def read_text(path: Path) -> str:
    """A file's text; ConfigError naming it, where it cannot be read."""
    try:
        return read_regular(path, MOST).decode("utf-8-sig")  # a spreadsheet puts a mark first
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} must be a text in UTF-8, got byte {error.start} that is none") from error
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} {error}") from error


def checked_result(path: Path) -> dict[str, Any]:
    """What a run's result.json holds.

    Errors: ConfigError naming the file and what is missing or of another kind.
    """
    text = read_text(path)
    wanted = f"{str(path)!r} must be the result of a run"
    try:
        result = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{wanted}, got a file that is no JSON: {error}; {_mend(path)}") from error
    if not isinstance(result, dict):
        raise ConfigError(f"{wanted}, got a {type(result).__name__}; {_mend(path)}")
    for name, kind in SHAPE.items():
        if not _fits(result.get(name), kind):
            got = f"{name} {str(result[name])[:40]!r}" if name in result else f"no {name}"
            raise ConfigError(f"{wanted}, got {got}; {_mend(path)}")
    if not {"train", "test"} <= result["samples"].keys() or "all" not in result["accuracy"]:
        raise ConfigError(f"{wanted}, got accuracies or samples without their names; {_mend(path)}")
    return result


def _mend(path: Path) -> str:
    return f"remove it and resume the run in {str(path.parent)!r} to have it written again"


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple) and kind[0] in (list, dict):
        inside = value.values() if isinstance(value, dict) else value
        return isinstance(value, kind[0]) and all(_fits(item, kind[1]) for item in inside)
    return isinstance(value, kind) and not isinstance(value, bool)


def read_rows(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`; a cell left empty is left out.

    Errors: ConfigError naming the file, and the line where it holds something else.
    """
    path = folder / METRICS
    rows = [{name: value for name, value in row.items() if value is not None} for row in read_numbers(path, NEEDED)]
    if not rows:
        raise ConfigError(f"{str(path)!r} must hold the rows of a run, got none")
    return rows


def read_numbers(path: Path, needed: tuple[str, ...]) -> list[dict[str, float | None]]:
    """The rows of a CSV file of numbers with a line of names, which `needed` are among; None for a cell left empty."""
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        names = next(lines, [])
        missing = [name for name in needed if name not in names]
        if missing:
            raise ConfigError(f"{str(path)!r} must have columns {', '.join(needed)}, got none named {missing[0]}")
        for cells in lines:
            if len(cells) != len(names):
                raise ValueError(f"{len(cells)} cells for {len(names)} columns")
            rows.append({name: float(cell) if cell else None for name, cell in zip(names, cells)})
            if any(rows[-1][name] is None for name in needed):
                raise ValueError("an empty cell where a number must be")
    except ConfigError:
        raise
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{str(path)!r} must hold numbers, got in line {lines.line_num}: {error}") from error
    return rows
