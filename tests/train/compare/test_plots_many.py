"""Pictures of many methods: a row each, the best above, and outliers that do not squeeze the others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra [train] is not installed")
pytest.importorskip("rich", reason="the extra [train] is not installed")

from matplotlib import image

from lt_kernels.train.compare import plots, plots_many, report, tables
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.methods.registry import BASE_METHODS
from lt_kernels.train.output import figures

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
        }
        for seed in range(2)
    ]


RESULTS = {name: runs(name, 10.0 if name == "la" else 60.0 + place) for place, name in enumerate(NAMES)}
SUMMARIES = [tables.summarize_method(name, each) for name, each in RESULTS.items()]


def pixels(picture: bytes) -> np.ndarray:
    return image.imread(io.BytesIO(picture), format="png")[..., :3]


def test_a_method_far_below_is_marked_at_the_edge() -> None:
    assert len(SUMMARIES) > plots_many.MANY
    figure, (axis,) = figures.canvas(4, 4)
    plots_many._points(axis, np.array([10.0, 70.0, 71.0, 72.0, 73.0]), [0.0, 1.0, 1.0, 1.0, 1.0])
    low, high = axis.get_xlim()
    assert 60 < low < 70 < 73 < high
    marked = [line for line in axis.lines if line.get_marker() == "<"]
    assert [list(line.get_ydata()) for line in marked] == [[0]]
    assert figure.axes == [axis]


@pytest.mark.parametrize("draw", [lambda: plots_many.group_points(SUMMARIES), lambda: plots_many.class_table(RESULTS)])
def test_pictures_have_room_for_every_method(draw: Any) -> None:
    shown = pixels(draw())
    assert shown.shape[0] > 20 * 20  # a row each
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50


def test_the_report_draws_a_row_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    patched = (
        (plots_many, ("group_points", "class_table")),
        (plots, ("group_bars",)),
        (figures, ("accuracy_by_count",)),
    )
    for module, names in patched:
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name: drawn.append(name) or b"png")
    monkeypatch.setattr(plots, "training_curves", lambda rows: drawn.append(str(len(rows))) or b"png")
    rows = {name: [[{"epoch": 1.0, "loss": 1.0, "all": 5.0}]] for name in NAMES}
    for chosen in (NAMES, NAMES[: plots_many.MANY]):
        some = {name: RESULTS[name] for name in chosen}
        kept = {name: rows[name] for name in chosen}
        report._pictures(SUMMARIES[: len(chosen)], some, kept, "samples")
    assert drawn == ["group_points", "class_table", "9", "group_bars", "accuracy_by_count", "16"]


def test_the_leading_methods_and_cross_entropy_are_drawn() -> None:
    rows = {name: [[{"epoch": 1.0, "loss": 1.0, "all": 5.0}]] for name in NAMES}
    assert list(plots_many.leading(rows, RESULTS)) == ["ce", *NAMES[-plots_many.LEADING :]]
