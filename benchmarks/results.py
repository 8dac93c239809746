"""One measurement a row: what the columns are, where the file is, and how a new run replaces an old one's rows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lt_kernels.system import storage

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEVICE = "device"  # the operator under which a device's own rates are kept
TRAINING, LOADING = "training", "loading"  # those of steps of training, and of loaders, in the folder TRAINING


@dataclass(frozen=True)
class Row:
    """One measured figure: `p50` of `samples` samples, with the 20th and the 80th percentile."""

    operator: str
    case: str
    provider: str
    mode: str
    device: str
    dtype: str
    sizes: str
    metric: str
    unit: str
    p50: float
    p20: float
    p80: float
    samples: int
    threads: int
    torch: str
    triton: str
    commit: str
    date: str

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What a new run measures again as a whole: one provider of one case."""
        return self.operator, self.case, self.dtype, self.provider


def path_of(machine: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """benchmarks/results/<device>.csv, with the number of threads for a CPU."""
    threads = "" if machine["device"].startswith("NVIDIA") else f" {machine['threads']} threads"
    return folder / (re.sub(r"[^a-z0-9]+", "-", (machine["device"] + threads).lower()).strip("-") + ".csv")


def read(path: Path) -> list[Row]:
    """The rows of a results file; none if it does not exist."""
    if not path.exists():
        return []
    kinds = {field.name: {"float": float, "int": int}.get(str(field.type), str) for field in fields(Row)}
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in csv.DictReader(file)]


def merge(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows, in place of those that the file had for the same provider and case."""
    new = list(rows)
    measured = {row.place for row in new}
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    with storage.held(path.parent):  # nobody else's rows are lost between reading and writing
        kept = [row for row in read(path) if row.place not in measured]
        writer.writerows(_rounded(row) for row in sorted(kept + new, key=lambda row: row.place))
        storage.write_whole(path, text.getvalue())


def _rounded(row: Row) -> dict[str, object]:
    """Four digits are more than a time is good for, and keep the file readable."""
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(row).items()}


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says, fit for a cell of a table."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}".replace("|", "/")[:300]
