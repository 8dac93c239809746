"""HTML pages that need no file beside them: templates with one style sheet, tables, and pictures with findings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lt_kernels.train.output import figures
from lt_kernels.train.output.cells import rounded

PAGES = Environment(
    loader=PackageLoader("lt_kernels.train.output"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Table(NamedTuple):
    """A table, whose first cells name the rows; the cells (row, column) of `best` are bold."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Collection[tuple[int, int]] = ()


class Picture(NamedTuple):
    """A picture in a page, what it is of, what one sees, and the table with its numbers in a file beside the page."""

    svg: Markup
    title: str
    caption: str
    numbers: str


def picture(figure: Figure, key: str, title: str, caption: str, finding: str, numbers: str) -> Picture:
    """A figure with what it shows in words; `key` is the page's own for it."""
    return Picture(Markup(figures.svg(figure, key, f"{title}. {finding}")), title, caption, numbers)


def page(template: str, **values: Any) -> str:
    """The page that a template makes of values."""
    return PAGES.get_template(template).render(values) + "\n"


def extremes(what: str, values: Mapping[str, float], unit: str = "", form: str = "") -> str:
    """Which has the highest and which the lowest value: `bs has the highest accuracy, 86.9 %, ce the lowest, ...`."""
    known = {name: value for name, value in values.items() if math.isfinite(value)}
    if not known:
        return f"There is no {what}."
    high, low = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
    numbers = (known[name] for name in (high, low))
    first, last = (f"{number:{form}}{unit}" if form else rounded(number) + unit for number in numbers)
    if len(known) == 1:
        return f"{what[0].upper()}{what[1:]} of {high}: {first}."
    if known[high] == known[low]:
        return f"All have the same {what}, {first}."
    return f"{high} has the highest {what}, {first}, {low} the lowest, {last}."
