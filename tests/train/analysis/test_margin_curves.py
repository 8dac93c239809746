"""Margins as curves: what is drawn is the published formula at each angle, of each class, easy and hard."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from lt_kernels import heads, losses
from lt_kernels.margins import DBM, LDAM, ArcFace, CosFace, Margin, SphereFace
from lt_kernels.train.analysis import plots_margins, tables
from lt_kernels.train.analysis.margins import margin_curves
from lt_kernels.train.model.readings import margin_of

COUNTS = torch.tensor([4, 256, 1, 81])
ORDER = torch.tensor([1, 3, 0, 2])
ANGLE = np.arange(181.0)
THETA = np.radians(ANGLE)


def sphere(theta: np.ndarray) -> np.ndarray:
    turn = np.floor(4 * theta / math.pi)
    return (-1) ** turn * np.cos(4 * theta) - 2 * turn


@pytest.mark.parametrize(
    "margin, curve",
    [
        (CosFace(0.35), np.cos(THETA) - 0.35),
        (ArcFace(0.5), np.where(ANGLE < 151.4, np.cos(THETA + 0.5), np.cos(THETA) - 0.5 * math.sin(0.5))),
        (SphereFace(4), sphere(THETA)),
        (SphereFace(4, annealing=5.0), (5 * np.cos(THETA) + sphere(THETA)) / 6),
    ],
    ids=["cosface", "arcface", "sphereface", "annealed"],
)
def test_margins_that_are_the_same_for_all(margin: Margin, curve: np.ndarray) -> None:
    found = margin_curves(margin, ORDER)
    assert found is not None
    assert found.classes.tolist() == [1, 0, 2]
    assert np.array_equal(found.angle, ANGLE)
    for kind in (found.easy, found.hard):
        for line in kind:
            assert line == pytest.approx(curve, abs=1e-7)


def test_the_margin_of_ldam_falls_with_the_fourth_root_of_the_count() -> None:
    found = margin_curves(LDAM(COUNTS, 0.5), ORDER)
    assert found is not None
    for line, hard, margin in zip(found.easy, found.hard, (0.5 / 4, 0.5 / 4**0.25, 0.5), strict=True):
        assert line == pytest.approx(np.cos(THETA) - margin, abs=1e-7)
        assert hard == pytest.approx(line, abs=1e-9)


def test_the_margin_of_dbm_grows_for_hard_samples() -> None:
    found = margin_curves(DBM(COUNTS, 0.2, tau=0.5, instance=1.5), ORDER)
    assert found is not None
    for easy, hard, margin in zip(found.easy, found.hard, (0.2 / 16, 0.1, 0.2), strict=True):
        assert easy == pytest.approx(np.cos(THETA + margin), abs=1e-7)
        assert hard == pytest.approx(np.cos(THETA + margin * (1 + 1.5 * (1 - np.cos(THETA)) / 2)), abs=1e-7)


def test_a_margin_that_grows_for_all_samples_has_one_curve() -> None:
    found = margin_curves(DBM(COUNTS, 0.2, tau=0.5, applies="all"), ORDER)
    assert found is not None
    assert found.hard == pytest.approx(found.easy, abs=1e-9)
    assert found.easy[2] == pytest.approx(np.cos(THETA + 0.2 * (1 + (1 - np.cos(THETA)) / 2)), abs=1e-7)


def test_one_class_has_no_curve_and_two_have_theirs() -> None:
    assert margin_curves(CosFace(0.1), torch.tensor([0])) is None
    found = margin_curves(CosFace(0.1), torch.tensor([1, 0]))
    assert found is not None
    assert found.classes.tolist() == [1, 0]


def test_the_margin_of_a_head_is_that_of_its_classification() -> None:
    base = losses.DBMLoss(COUNTS, base="bs")
    assert margin_of(heads.CosineHead(3, 4, base)) is base.margin
    assert margin_of(heads.LinearHead(3, 4, losses.CrossEntropyLoss())) is None
    assert margin_of(heads.LinearHead(3, 4, losses.LADELoss(COUNTS))) is None
    assert margin_of(type("Head", (), {"loss": losses.BalancedContrastiveLoss(base)})) is base.margin
    sphere_face = losses.SphereFaceLoss(3)
    sphere_face.set_annealing(7.0)
    found = margin_of(heads.CosineHead(3, 4, sphere_face))
    assert isinstance(found, SphereFace)
    assert (found.margin, found.annealing) == (3, 7.0)


class Run:
    """What the picture and its table read of a run."""

    counted = "samples"
    counts = COUNTS.numpy()
    class_names = ("a", "b", "c", "d")

    def __init__(self, name: str, margin: Margin | None) -> None:
        self.name, self.margins = name, None if margin is None else margin_curves(margin, ORDER)


def test_the_picture_has_a_panel_a_run_with_a_margin() -> None:
    runs: list[Any] = [Run("ce", None), Run("dbm", DBM(COUNTS, 0.2)), Run("cosface", CosFace(0.35))]
    figure: Any = plots_margins.margins(runs)
    labels = [[line.get_label() for line in axis.lines] for axis in figure.axes]
    kinds = ("easy", "hard")
    of_dbm = [f"n = {count}, {kind}" for count in (256, 4, 1) for kind in kinds]
    assert labels == [[*of_dbm, "no margin"], ["every class", "no margin"]]
    assert [axis.get_title() for axis in figure.axes] == ["dbm", "cosface"]


def test_the_table_has_a_row_for_each_angle_of_each_class() -> None:
    runs: list[Any] = [Run("ce", None), Run("dbm", DBM(COUNTS, 0.2))]
    rows = list(csv.DictReader(io.StringIO(tables.margins(runs))))
    assert len(rows) == 3 * 181
    row = rows[2 * 181 + 90]  # the rarest class at 90 degrees: half of the distance counts
    assert [row[key] for key in ("run", "class", "name", "training_samples", "angle")] == ["dbm", "2", "c", "1", "90.0"]
    assert float(row["easy"]) == pytest.approx(math.cos(math.pi / 2 + 0.2))
    assert float(row["hard"]) == pytest.approx(math.cos(math.pi / 2 + 0.3))
