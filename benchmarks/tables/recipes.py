"""Writes the table of docs/recipes.md, which is what the recipes of data sets that are read from files say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT
from benchmarks.tables.markdown import markdown, section
from lt_kernels.train.config import make_config
from lt_kernels.train.published import carried, network_name
from lt_kernels.train.recipes import RECIPES, read_settings
from lt_kernels.train.values import title

DOCUMENT = ROOT / "docs" / "recipes.md"
# Data sets that need no files, or those of the user.
OURS = ("digits-lt", "digit-scenes", "stdlib-words", "fashion-lt", "hanzi-lt", "folder", "dataset", "hf")
HEADER = ("recipe", "network", "epochs, batch, rate", "published figures", "their source")


def ours(recipe: str) -> bool:
    """Whether a recipe is of a data set that no paper has."""
    return recipe.startswith(OURS)


def figures_of(recipe: str) -> list[str]:
    """`method` 51.3 (67.29, 50.8, 33.23), one for each method and variant; of several figures for one, each."""
    found: dict[str, list[str]] = {}
    for row in carried(recipe):
        if row.measure in ("accuracy", "miou") and row.text() not in found.setdefault(row.method, []):
            found[row.method].append(row.text())
    return [f"`{method}` {' and '.join(texts)}" for method, texts in found.items()]


def row(path: Path) -> list[str]:
    """A recipe's line of the table."""
    config = make_config(read_settings(path))
    sources = dict.fromkeys(figure.where() for figure in carried(path.stem))
    network = network_name(config.as_dict())
    way = f"{config.epochs}, {config.batch_size}, {config.lr:g} {title(config.schedule)}"
    none = f"`{config.method}`: none here"
    link = f"[{path.stem}](../lt_kernels/recipes/{path.name})"
    return [link, network, way, ", ".join(figures_of(path.stem)) or none, "; ".join(sources) or "-"]


def order(path: Path) -> tuple[Any, ...]:
    """By data set, the largest imbalance first."""
    numbers = [-int(number) for number in re.findall(r"-lt-(\d+)", path.stem)]
    return (not path.stem.startswith("cifar"), re.split(r"-lt|2018", path.stem)[0], numbers, path.stem)


def table() -> str:
    """The whole table."""
    paths = [path for path in RECIPES.glob("*.yaml") if not ours(path.stem)]
    return markdown(HEADER, (row(path) for path in sorted(paths, key=order)))


def main() -> int:
    """Rewrite the marked section of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(section(text, "recipes", table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
