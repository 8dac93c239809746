"""Colours and pictures of pages: letters and lines stand out in both schemes, and a figure has the same bytes twice."""

from __future__ import annotations

import importlib.resources
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib.colors import to_rgb

from lt_kernels.train.output import figures
from lt_kernels.train.output.pages import extremes
from tests.pages import Page

STYLE = (importlib.resources.files("lt_kernels.train.output") / "templates" / "style.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w{6})", line)) for line in re.findall(r":root \{.*\}", STYLE))


def contrast(first: np.ndarray, second: np.ndarray) -> float:
    """WCAG 2.2's ratio of two colours [3] in 0..1."""

    def luminance(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def inverted(colour: np.ndarray) -> np.ndarray:
    """What `filter: invert(1) hue-rotate(180deg)` makes of a colour, as CSS Filter Effects 1 says (cos -1, sin 0)."""
    rotation = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
    return np.clip(rotation @ (1 - colour), 0, 1)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_letters_stand_out_from_the_paper(scheme: dict[str, str]) -> None:
    assert set(scheme) == {"paper", "ink", "soft", "link", "line"}
    paper = np.array(to_rgb(scheme["paper"]))
    for name in ("ink", "soft", "link"):
        assert contrast(np.array(to_rgb(scheme[name])), paper) >= 4.5, name


def test_lines_of_pictures_stand_out_in_both_schemes() -> None:
    assert "filter: invert(1) hue-rotate(180deg)" in STYLE
    assert inverted(np.zeros(3)) == pytest.approx(np.ones(3))
    assert inverted(np.ones(3)) == pytest.approx(np.zeros(3))
    white, dark = np.ones(3), np.array(to_rgb(DARK["paper"]))
    for style in figures.method_styles([*"abcdefgh", "ce"]).values():
        colour = np.array(to_rgb(style["color"]))
        assert contrast(colour, white) >= 3, style
        assert contrast(inverted(colour), dark) >= 3, style


def test_methods_differ_by_marker_and_not_by_colour_alone() -> None:
    styles = figures.method_styles([*"abcdefghij", "ce"])
    assert len({style["marker"] for style in styles.values()}) == len(styles)


@pytest.mark.parametrize("names", [1, 12, 100])
def test_a_figure_has_room_for_its_panels_however_many_names_stand_below(names: int) -> None:
    """Matplotlib warns, which is an error here, where the panels have none."""
    figure, (axis,) = figures.canvas(5.5, 4)
    for name in range(names):
        axis.plot([0, 1], [0, name], label=f"estimated-offset-{name}")
    figures.legend_below(figure, axis)
    figure.draw_without_rendering()
    assert 2.4 < axis.get_position().height * figure.get_figheight() < 3.5  # inches


def test_a_picture_has_the_same_bytes_twice_and_ids_of_its_own() -> None:
    def drawn(key: str) -> str:
        figure, (axis,) = figures.canvas(4, 3)
        axis.plot([0, 1], [1, 3], "o-", label='<b> "c" id=')
        axis.imshow(np.eye(2))
        figures.legend_below(figure, axis)
        return figures.svg(figure, key, 'says "<this>"')

    assert drawn("a") == drawn("a")
    first, second = Page(drawn("a")), Page(drawn("b"))
    assert len(first.ids) == len(set(first.ids)) > 5
    assert not set(first.ids) & set(second.ids)
    assert {one for one in first.addresses if one.startswith("#")} <= {f"#{one}" for one in first.ids}
    assert first.pictures == ['says "<this>"']
    assert "<b>" in first.text


def test_the_highest_and_the_lowest_are_said() -> None:
    values = {"ce": 79.44, "bs": 86.91, "la": float("nan")}
    assert extremes("accuracy", values, " %", ".1f") == "bs has the highest accuracy, 86.9 %, ce the lowest, 79.4 %."
    assert extremes("accuracy", {"ce": 79.44}, " %", ".1f") == "Accuracy of ce: 79.4 %."
    assert extremes("number", {"a": 2.0, "b": 2.0}) == "All have the same number, 2."
    assert (
        extremes("errors", {"ce": 2487.0, "bs": 0.0123}) == "ce has the highest errors, 2,487, bs the lowest, 0.0123."
    )
    assert extremes("number", {"a": float("nan")}) == "There is no number."
