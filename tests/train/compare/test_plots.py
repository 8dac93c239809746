"""Pictures of many methods: a row each, the best above, and outliers that do not squeeze the others."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra [train] is not installed")
pytest.importorskip("rich", reason="the extra [train] is not installed")

from matplotlib import image
from matplotlib.figure import Figure

from lt_kernels.train.compare import plots, report, tables
from lt_kernels.train.compare.pairs import Pair
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.methods.registry import BASE_METHODS
from lt_kernels.train.output import figures
from tests.pages import Page

FACTS = (
    *("data", "classes", "class_counts", "counted", "training_samples", "network", "epochs", "device", "torch"),
    *("threads_a_run", "runs_at_a_time", "commit", "grouped"),
)
COUNTS = [90, 30, 10, 3]
NAMES = list(BASE_METHODS)[:20]


def runs(method: str, accuracy: float) -> list[dict[str, Any]]:
    groups = {"many": accuracy + 5, "few": accuracy - 5, "all": accuracy, "gm": accuracy - 8}
    return [
        {
            "config": {**TrainConfig(method=method).as_dict(), "seed": seed},
            "accuracy": {name: value + seed for name, value in groups.items()},
            "per_class": [accuracy + seed] * 4,
            "class_counts": COUNTS,
            "seconds_per_epoch": 1.0,
            "seconds": 9.0,
        }
        for seed in range(2)
    ]


RESULTS = {name: runs(name, 10.0 if name == "la" else 60.0 + place) for place, name in enumerate(NAMES)}
SUMMARIES = [tables.summarize_method(name, each) for name, each in RESULTS.items()]


def pixels(figure: Figure) -> np.ndarray:
    return image.imread(io.BytesIO(figures.png(figure)), format="png")[..., :3]


def test_a_method_far_below_is_marked_at_the_edge() -> None:
    figure, (axis,) = figures.canvas(4, 4)
    styles = list(figures.method_styles(list("abcde")).values())[:5]
    said = plots._points(axis, np.array([10.0, 70.0, 71.0, 72.0, 73.0]), [0.0, 1.0, 1.0, 1.0, 1.0], styles)
    low, high = axis.get_xlim()
    assert 60 < low < 70 < 73 < high
    marked = [line for line in axis.lines if line.get_marker() == "<"]
    assert [list(line.get_ydata()) for line in marked] == [[0]]
    assert figure.axes == [axis]
    assert "triangle" in said


@pytest.mark.parametrize("draw", [lambda: plots.group_points(SUMMARIES, "few"), lambda: plots.class_table(RESULTS)])
def test_pictures_have_room_for_every_method(draw: Any) -> None:
    shown = pixels(draw())
    assert shown.shape[0] > 20 * 20  # a row each
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("number", [20, 16])
def test_many_methods_have_a_table_of_classes_and_the_leading_curves(number: int) -> None:
    chosen = NAMES[:number]
    some = {name: RESULTS[name] for name in chosen}
    rows = {name: [[{"epoch": 1.0, "loss": 1.0, "all": 5.0}]] for name in chosen}
    about = dict.fromkeys((*FACTS, "test_samples"), 1)
    page = Page(report.render(SUMMARIES[:number], some, rows, about, "title"))
    many = number > plots.MANY
    assert ("methods by their mean" in page.text) == many
    assert ("methods with the highest mean" in page.text) == many
    assert all(name in page.text for name in chosen)


def test_differences_have_their_intervals() -> None:
    pairs = [Pair("bs", "ce", tables.Spread(2.0, 3.0), 2, 3), Pair("la", "ce", tables.Spread(-1.0, 0.5), 0, 3)]
    (axis,) = plots.differences(pairs).axes
    lines = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    low, high = pairs[0].interval()
    assert [list(line.get_xdata()) for line in lines] == [list(pairs[1].interval()), [low, high]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["la - ce", "bs - ce"]
    # 4.3027: the quantile 0.975 of Student's t with 2 degrees of freedom, from a printed table
    assert (high - low) / 2 == pytest.approx(4.3027 * 3 / 3**0.5, rel=1e-4)


def test_the_leading_methods_and_cross_entropy_are_drawn() -> None:
    rows = {name: [[{"epoch": 1.0, "loss": 1.0, "all": 5.0}]] for name in NAMES}
    assert list(plots.leading(rows, RESULTS)) == ["ce", *NAMES[-plots.LEADING :]]


def test_classes_without_test_samples_are_left_empty() -> None:
    accuracy = [math.nan, 50.0, 70.0, math.nan]
    results = {name: [{**run, "per_class": accuracy} for run in each] for name, each in RESULTS.items()}
    (shown,) = plots.class_table(results).axes[0].images
    assert np.array_equal(np.ma.filled(shown.get_array(), math.nan), [accuracy] * len(NAMES), equal_nan=True)
