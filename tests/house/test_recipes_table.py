"""The table of recipes in docs/recipes.md is what the recipes say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the extra [train] is not installed")

from lt_kernels.data import READERS
from lt_kernels.train.augment.augmentations import AUGMENTATIONS
from lt_kernels.train.config import make_config
from lt_kernels.train.model.networks import NETWORKS
from lt_kernels.train.recipes import read_settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "recipes.md"
OURS = {"digits-lt", "digit-scenes", "stdlib-words"}
HEAD = "| recipe | network | epochs, batch, rate | published figures | their source |\n|---|---|---|---|---|"


def percent(value: float) -> str:
    """51.3, 69.0, 67.29."""
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("0") else text


def figure(method: str, values: dict[str, Any]) -> str:
    """`method` 51.30 (67.29, 50.80, 33.23)."""
    groups = [percent(values[name]) for name in ("many", "medium", "few") if name in values]
    return f"`{method}` {percent(values['all'])}" + (f" ({', '.join(groups)})" if groups else "")


def row(path: Path) -> str:
    """A recipe's line of the table."""
    settings = read_settings(path)
    config = make_config(settings)
    published = settings.get("published", {})
    figures = ", ".join(figure(method, values) for method, values in published.items())
    sources = "; ".join(dict.fromkeys(values["source"] for values in published.values()))
    way = f"{config.epochs}, {config.batch_size}, {config.lr:g} {config.schedule}"
    none = f"`{config.method}`: none here"
    return (
        f"| [{path.stem}](../recipes/{path.name}) | {config.network} | {way} | {figures or none} | {sources or '-'} |"
    )


def order(path: Path) -> tuple[Any, ...]:
    """By data set, the largest imbalance first."""
    numbers = [-int(number) for number in re.findall(r"-lt-(\d+)", path.stem)]
    return (not path.stem.startswith("cifar"), re.split(r"-lt|2018", path.stem)[0], numbers, path.stem)


def table() -> str:
    """The whole table."""
    paths = [path for path in (ROOT / "recipes").glob("*.yaml") if path.stem not in OURS]
    return "\n".join([HEAD, *(row(path) for path in sorted(paths, key=order))])


def test_the_document_has_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8")


def test_the_document_names_every_data_set_network_and_augmentation() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    names = {*READERS, *AUGMENTATIONS, *NETWORKS} - OURS - {"mlp", "words", "unet"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
