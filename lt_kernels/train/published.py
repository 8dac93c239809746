"""Published figures: the tables of the papers whose methods are here, row by row, and the recipe for each row.

`published.csv` beside this file is their only place. Each row names the source and the table that it was read from.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lt_kernels.train.values import title

FILE = Path(__file__).with_name("published.csv")
GROUPS = ("all", "many", "medium", "few")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A row of a published table, in percent; `measure` says of what: "accuracy" on a balanced test set, "shift" (on
    the test set that `note` names), "miou" (`note` has the mean accuracy of pixels), "separability" (a number), "best"
    (accuracy, the highest of others' methods), or "settings" (no figures).

    `method` is a method's name here or a variant's of `recipe`; a row without a recipe is of a method that is not here.
    """

    source: str
    table: str
    measure: str
    data: str
    imbalance: float | None
    network: str
    epochs: int | None
    method: str
    all: float | None
    many: float | None
    medium: float | None
    few: float | None
    recipe: str
    note: str

    def text(self) -> str:
        """51.3 (67.29, 50.8, 33.23): over all classes, and many-, medium- and few-shot ones where they are known; of
        scenes 67.6 (mAcc 74.6).
        """
        groups = [percent(value) for value in (self.many, self.medium, self.few) if value is not None]
        if self.measure == "miou" and self.note:
            groups = [self.note]
        return ("" if self.all is None else percent(self.all)) + (f" ({', '.join(groups)})" if groups else "")

    def where(self) -> str:
        """The source and the table in it."""
        return f"{self.source}, {self.table}"


def percent(value: float) -> str:
    """51.3, 69.0, 67.29."""
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("0") else text


@functools.cache
def figures() -> tuple[Figure, ...]:
    """Every row."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(_figure(row) for row in csv.DictReader(file))


def _figure(row: Mapping[str, str]) -> Figure:
    numbers = {name: float(row[name]) if row[name] else None for name in ("imbalance", *GROUPS)}
    return Figure(**{**row, **numbers, "epochs": int(row["epochs"]) if row["epochs"] else None})  # type: ignore[arg-type]


def carried(recipe: str) -> list[Figure]:
    """The rows that a recipe has the settings of."""
    return [figure for figure in figures() if figure.recipe == recipe]


def network_name(config: Mapping[str, Any]) -> str:
    """A run's network as tables name it: resnet32x4 is four times as wide as resnet32."""
    width = config.get("network_options", {}).get("width", 16)
    wide = config["network"] == "resnet32" and width % 16 == 0 and width != 16
    return f"{config['network']}x{width // 16}" if wide else title(config["network"])


def fits(figure: Figure, config: Mapping[str, Any]) -> bool:
    """Whether a row is of a run's data, imbalance, network and epochs, as far as it says them."""
    return (
        figure.data == config["data"]
        and figure.imbalance == config.get("imbalance")
        and figure.network in ("", network_name(config))
        and figure.epochs in (None, config["epochs"])
    )


def figures_for(config: Mapping[str, Any], name: str, measure: str = "accuracy") -> list[Figure]:
    """The rows of a measure to set beside a run; `name` is its method's, or its variant's in a comparison."""
    return [
        one for one in figures() if one.recipe and one.measure == measure and one.method == name and fits(one, config)
    ]


def methods_not_here() -> dict[str, list[str]]:
    """The methods of published tables that this package does not have, each with the tables that have it."""
    found: dict[str, list[str]] = {}
    for row in figures():
        if not row.recipe and row.measure == "accuracy" and row.where() not in found.setdefault(row.method, []):
            found[row.method].append(row.where())
    return found
