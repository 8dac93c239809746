"""Writes the table of docs/recipes.md, which is what the recipes of data sets that are read from files say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT
from benchmarks.tables.markdown import markdown, section
from lt_kernels.train.config import make_config
from lt_kernels.train.recipes import read_settings

DOCUMENT = ROOT / "docs" / "recipes.md"
OURS = {"digits-lt", "digits-lt-decay", "digit-scenes", "stdlib-words"}  # recipes of data sets that need no files
HEADER = ("recipe", "network", "epochs, batch, rate", "published figures", "their source")


def percent(value: float) -> str:
    """51.3, 69.0, 67.29."""
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("0") else text


def figure(method: str, values: dict[str, Any]) -> str:
    """`method` 51.30 (67.29, 50.80, 33.23)."""
    groups = [percent(values[name]) for name in ("many", "medium", "few") if name in values]
    return f"`{method}` {percent(values['all'])}" + (f" ({', '.join(groups)})" if groups else "")


def row(path: Path) -> list[str]:
    """A recipe's line of the table."""
    settings = read_settings(path)
    config = make_config(settings)
    published = settings.get("published", {})
    figures = ", ".join(figure(method, values) for method, values in published.items())
    sources = "; ".join(dict.fromkeys(values["source"] for values in published.values()))
    way = f"{config.epochs}, {config.batch_size}, {config.lr:g} {config.schedule}"
    none = f"`{config.method}`: none here"
    link = f"[{path.stem}](../recipes/{path.name})"
    return [link, config.network, way, figures or none, sources or "-"]


def order(path: Path) -> tuple[Any, ...]:
    """By data set, the largest imbalance first."""
    numbers = [-int(number) for number in re.findall(r"-lt-(\d+)", path.stem)]
    return (not path.stem.startswith("cifar"), re.split(r"-lt|2018", path.stem)[0], numbers, path.stem)


def table() -> str:
    """The whole table."""
    paths = [path for path in (ROOT / "recipes").glob("*.yaml") if path.stem not in OURS]
    return markdown(HEADER, (row(path) for path in sorted(paths, key=order)))


def main() -> int:
    """Rewrite the marked section of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(section(text, "recipes", table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
