"""What `lt-kernels recipes` prints: the recipes, one of them, and the published figures with the commands for them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lt_kernels.system.spelling import did_you_mean
from lt_kernels.system.terminal import shown
from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import method_options
from lt_kernels.train.methods.variants import variants_of
from lt_kernels.train.output.screen import Screen, print_table
from lt_kernels.train.plainyaml import written
from lt_kernels.train.published import Figure, carried, figures
from lt_kernels.train.recipes import every_recipe, read_settings
from lt_kernels.train.values import title

COLUMNS = ("recipe", "data", "imbalance", "network", "epochs", "method", "published rows")
PUBLISHED = ("source", "data", "imbalance", "network", "method", "figure", "of", "command")
MEASURES = {"accuracy": "accuracy [%]", "miou": "mIoU [%]", "separability": "separability"}


def list_recipes(name: str | None, published: bool) -> int:
    """Print the recipes, or with `name` all settings of one; with `published` the figures that they have, or it has."""
    path = named(name) if name else None
    if published:
        rows = [figure for figure in figures() if figure.recipe and (path is None or figure.recipe == path.stem)]
        _print(PUBLISHED, published_rows(rows), f"{len(rows)} published figures of methods that are here")
    elif path is not None:
        print(text_of(path), end="")
    else:
        paths = every_recipe()
        _print(COLUMNS, map(recipe_row, paths.values()), f"{len(paths)} recipes")
    return 0


def named(name: str) -> Path:
    """The recipe of a name, which may end in .yaml. Errors: ConfigError where there is none."""
    known, stem = every_recipe(), name.removesuffix(".yaml")
    if stem not in known:
        hint = did_you_mean(stem, known)
        raise ConfigError(f"recipe must be one that `lt-kernels recipes` lists, got {name!r}{hint}")
    return known[stem]


def recipe_row(path: Path) -> list[str]:
    """A recipe's name, and what it trains."""
    config = make_config(read_settings(path))
    imbalance = "" if config.imbalance is None else f"{config.imbalance:g}"
    rows = str(len(carried(path.stem)) or "")
    return [path.stem, config.data, imbalance, title(config.network), str(config.epochs), config.method, rows]


def text_of(path: Path) -> str:
    """A recipe with all its settings, those of its base too: a file to change."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:first]) + written(read_settings(path))


def published_rows(rows: Sequence[Figure]) -> list[list[str]]:
    """The published figures, each with the command that trains for it."""
    settings = {recipe: read_settings(named(recipe)) for recipe in dict.fromkeys(row.recipe for row in rows)}
    return [[*_about(row), command(row, settings[row.recipe])] for row in rows]


def _about(figure: Figure) -> list[str]:
    imbalance = "" if figure.imbalance is None else f"{figure.imbalance:g}"
    of = MEASURES.get(figure.measure, f"accuracy, {figure.note} [%]")
    return [figure.where(), figure.data, imbalance, figure.network, figure.method, figure.text(), of]


def command(figure: Figure, settings: Mapping[str, Any]) -> str:
    """`lt-kernels train` with the figure's recipe of these settings and its method, or what its variant sets."""
    words = ["lt-kernels", "train", "--config", figure.recipe]
    variant = variants_of(settings).get(figure.method, {"method": figure.method})
    method = variant.pop("method")
    options = method_options(method, {})
    changes = {} if method == settings.get("method") else {"method": method}
    changes.update({f"method_options.{key}" if key in options else key: value for key, value in variant.items()})
    for key, value in changes.items():
        words += ["--set", f"{key}={_value(value)}"]
    return shlex.join(words)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print(header: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    screen = Screen()
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in header:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(escape(shown(cell, screen.encoding)) for cell in row))
    print_table(screen, table)
