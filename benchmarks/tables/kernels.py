"""Writes measured sections of docs/kernels/*.md between their markers, as readme.py does those of README.md.

<!-- table: goals -->      benchmarks/results/<device>.csv, as `lt-kernels bench` wrote them
<!-- table: growth -->     benchmarks/results/growth/<device>.csv, as `lt-kernels bench --growth` wrote them
<!-- table: pictures -->   the files of docs/pictures, as `lt-kernels bench --plot` drew them
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import growth, results
from benchmarks.growth import Line
from benchmarks.results import Row
from benchmarks.tables import goals
from benchmarks.tables.markdown import markdown, section

FOLDER = results.ROOT / "docs" / "kernels"
PICTURES = FOLDER.parent / "pictures"
WORDS = {"time": "time", "peak extra memory": "memory"}
HEADER = ("operator", "along", "with", "provider", "of", "least size", "largest size", "exponent", "expected", "bends")


def main() -> int:
    """Rewrite the marked sections of docs/kernels."""
    for document in sorted(FOLDER.glob("*.md")):
        text = document.read_text(encoding="utf-8")
        document.write_text(rewritten(text, results.RESULTS, PICTURES), encoding="utf-8")
    return 0


def rewritten(text: str, folder: Path, pictures: Path = PICTURES) -> str:
    """The text with each section made anew from the files; a section without a file stays."""
    for name, made in _sections(folder, pictures):
        text = section(text, name, made)
    return text


def _sections(folder: Path, pictures: Path) -> tuple[tuple[str, str], ...]:
    return ("goals", goals.tables(folder)), ("growth", growth_tables(folder)), ("pictures", picture_links(pictures))


def growth_tables(folder: Path) -> str:
    """One table for each device whose sweeps lie in `folder`/growth."""
    measured = (results.read(path) for path in sorted((folder / growth.FOLDER).glob("*.csv")))
    return "\n\n".join(growth_table(rows) for rows in measured if rows)


def growth_table(rows: list[Row]) -> str:
    """The exponents of one device under a line that says where and how they were taken."""
    first, commits, dates = rows[0], sorted({row.commit for row in rows}), sorted({row.date for row in rows})
    caption = (
        f"{first.device}, {first.threads} threads, torch {first.torch}, commit {', '.join(commits)}, {dates[-1]}. "
        "Forward and backward together: medians of the time, and the peak of memory beyond the inputs. Exponents by "
        f"least squares on the logarithms, over the upper half of the log axis and at least {growth.FEWEST} points. "
        "Bends: neighbouring sizes whose own slope differs from the exponent by more than "
        f"{growth.TOLERANCE}. Memory below {growth.FLOOR:g} MiB is left out."
    )
    return caption + "\n\n" + markdown(HEADER, [_cells(line) for line in growth.lines(rows)])


def _cells(line: Line) -> list[str]:
    exponent, who = line.exponent, [f"`{line.operator}`", line.axis, line.fixed, line.provider, WORDS[line.metric]]
    ends = [f"{size:,}: {_figure(figure, line.unit)}" for size, figure in (line.points[0], line.points[-1])]
    bends = "; ".join(f"{low:,} to {high:,}: {slope:.2f}" for low, high, slope in line.bends())
    return [*who, *ends, "" if exponent is None else f"{exponent:.2f}", growth.expected(line), bends]


def _figure(figure: float, unit: str) -> str:
    """Three digits and the unit; from 1,000 on whole numbers."""
    return f"{figure:,.0f} {unit}" if figure >= 1_000 else f"{figure:.3g} {unit}"


def picture_links(folder: Path) -> str:
    """An image for each picture, with its name as the words for those who do not see it."""
    found = sorted(folder.glob("*.png"))
    return "\n\n".join(f"![{path.stem.replace('-', ' ')}](../{folder.name}/{path.name})" for path in found)


if __name__ == "__main__":
    raise SystemExit(main())
