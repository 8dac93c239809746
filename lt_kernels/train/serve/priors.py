"""A class prior by its name or from a file."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import torch
from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import read_text
from lt_kernels.train.output.cells import unquoted

COLUMNS = ("class", "prior")


def prior_of(name: str | None, data: LongTailedData) -> Tensor | None:
    """The prior float64 [C] that sums to 1: `uniform`, `train` for that of the training set, or that of a CSV file with
    the columns class and prior; None for None.

    Errors: ConfigError naming --prior, or the file and the line in it.
    """
    if name is None:
        return None
    if name == "uniform":
        return torch.full((data.num_classes,), 1 / data.num_classes, dtype=torch.float64)
    if name == "train":
        return data.class_counts.double() / data.class_counts.sum()
    if not Path(name).is_file():
        raise ConfigError(f"--prior must be uniform, train or a CSV file with the columns class,prior, got {name!r}")
    return _read(Path(name), data.class_names)


def _read(path: Path, classes: tuple[str, ...]) -> Tensor:
    lines = csv.reader(io.StringIO(read_text(path), newline=""))
    if tuple(next(lines, ())) != COLUMNS:
        raise ConfigError(f"{str(path)!r} must begin with the line {','.join(COLUMNS)}")
    found: dict[str, float] = {}
    for cells in lines:
        place = f"{str(path)!r}, line {lines.line_num}"
        if len(cells) != len(COLUMNS):
            raise ConfigError(f"{place} must have {len(COLUMNS)} cells, got {len(cells)}")
        name = cells[0] if cells[0] in classes else unquoted(cells[0])
        if name not in classes or name in found:
            raise ConfigError(f"{place} must name a class of the run that no line before names, got {cells[0]!r}")
        found[name] = _share(cells[1], place)
    missing = [name for name in classes if name not in found]
    if missing:
        raise ConfigError(f"{str(path)!r} must give every class a prior, got none for {missing[0]!r}")
    prior = torch.tensor([found[name] for name in classes], dtype=torch.float64)
    if not 0 < float(prior.sum()) < math.inf:
        raise ConfigError(f"{str(path)!r} must have priors of a finite sum above 0, got {float(prior.sum()):g}")
    return prior / prior.sum()


def _share(text: str, place: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise ConfigError(f"{place} must have a prior that is a finite number of at least 0, got {text!r}")
    return share
