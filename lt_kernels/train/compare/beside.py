"""Published figures beside a comparison's own: their cells, and the sources as footnotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lt_kernels.train.config import judged_on
from lt_kernels.train.published import Figure, figures_for

HEADING = "published"


def published_for(name: str, config: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The figures of a method or variant for a run's data, imbalance, network and epochs; none for a validation set."""
    if judged_on(config) == "validation":
        return ()
    return tuple(figures_for(config, name) or figures_for(config, name, "miou"))


def sources(found: Sequence[Sequence[Figure]]) -> list[str]:
    """The footnotes, in the order of their numbers: each source once."""
    return list(dict.fromkeys(figure.where() for figures in found for figure in figures))


def cell(figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """As `51.3 (67.29, 50.8, 33.23) [1, 3]; 45.0 [2]`: over all classes (many, medium, few), and their footnotes.

    Of figures with the same value over all classes, the one that has the groups stands for the others.
    """
    texts: dict[float | None, str] = {}
    numbers: dict[float | None, list[int]] = {}
    for figure in figures:
        texts[figure.all] = max(texts.get(figure.all, ""), figure.text(), key=len)
        places = numbers.setdefault(figure.all, [])
        number = notes.index(figure.where()) + 1
        places += [] if number in places else [number]
    unit = {"miou": "mIoU "}.get(figures[0].measure, "") if figures else ""
    return "; ".join(f"{unit}{text} [{', '.join(map(str, numbers[key]))}]" for key, text in texts.items())


def as_facts(found: Mapping[str, Sequence[Figure]]) -> dict[str, Any]:
    """For table.json: `published`, the figures of each method that has any; nothing where none has."""
    keys = ("all", "many", "medium", "few", "measure", "source", "table", "recipe", "note")
    named = {name: [{key: getattr(one, key) for key in keys} for one in figures] for name, figures in found.items()}
    kept = {name: figures for name, figures in named.items() if figures}
    return {"published": kept} if kept else {}


def footnotes(notes: Sequence[str]) -> list[str]:
    """One line each."""
    return [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
