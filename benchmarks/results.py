"""One measurement a row: what the columns are, where the file is, and how a new run replaces an old one's rows."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from lt_kernels.doctor import cpu_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


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


@dataclass(frozen=True)
class Surroundings:
    """The columns that are the same for every row of a run."""

    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    date: str


def surroundings(device: str, threads: int) -> Surroundings:
    """This machine, these versions, this commit."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "-"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_description()
    today = datetime.date.today().isoformat()
    return Surroundings(name, threads, torch.__version__, triton, commit(), today)


def cpu_description() -> str:
    """The CPU's name and the widest instruction set that torch uses on it."""
    return f"{cpu_name()} {torch.backends.cpu.get_cpu_capability()}"


def commit() -> str:
    """The short hash of the sources; "+" where files that the measurement depends on differ from it."""
    changed = _git("status", "--porcelain", "--", "lt_kernels", "csrc", "setup.py", "benchmarks/*.py")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def path_of(around: Surroundings, folder: Path = RESULTS) -> Path:
    """benchmarks/results/<device>.csv, with the number of threads for a CPU."""
    threads = "" if around.device.startswith("NVIDIA") else f" {around.threads} threads"
    return folder / (re.sub(r"[^a-z0-9]+", "-", (around.device + threads).lower()).strip("-") + ".csv")


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
    kept = [row for row in read(path) if row.place not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(row) for row in sorted(kept + new, key=lambda row: row.place))


def _rounded(row: Row) -> dict[str, object]:
    """Four digits are more than a time is good for, and keep the file readable."""
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
