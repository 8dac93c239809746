"""The pictures of the analyses: few classes and many, one run and several, and what cannot be drawn."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

import matplotlib
from matplotlib import image
from matplotlib.figure import Figure

from lt_kernels.margins import DBM
from lt_kernels.train.analysis import plots_classes, plots_offsets, plots_parts, plots_samples
from lt_kernels.train.analysis.entries import ENTRIES
from lt_kernels.train.analysis.margins import margin_curves
from lt_kernels.train.analysis.measures import BLOCKS, GROUPS, Analysis, Histogram, Matrix, blocks
from lt_kernels.train.output import figures
from lt_kernels.train.output.pages import extremes
from lt_kernels.train.run.components import NAMES, History
from lt_kernels.train.run.parts import Parts


def samples(random: np.random.Generator, classes: int) -> dict[str, Any]:
    """What is by sample: three of each class, densities, and bins of confidence."""
    keys = [(group, sign) for group in GROUPS for sign in ("positive", "negative")]
    target = np.repeat(np.arange(classes), 3)
    return {
        "target": target,
        "angles": {kind: random.uniform(10, 90, len(target)) for kind in ("weight", "mean")},
        "histogram": Histogram(np.linspace(-5, 5, 21), {key: random.uniform(size=20) for key in keys}),
        "calibration": np.column_stack([np.arange(15) / 15, np.ones(15), np.arange(15) / 15, np.ones(15) / 2]),
        "summary": dict.fromkeys((*plots_samples.BALANCE, "calibration_error", "separability_all"), 0.5),
    }


def made(name: str, classes: int, seed: int = 0, **changes: Any) -> Analysis:
    """An analysis of random numbers, with counts from 300 down to 1 in no order."""
    random = np.random.default_rng(seed)
    counts = random.permutation(np.geomspace(300, 1, classes).astype(int))
    order = np.argsort(-counts, kind="stable")
    wrong = random.integers(0, 3, classes)
    weight = torch.from_numpy(random.normal(size=(classes, 8)))
    parts = Parts(np.arange(1, 4), order[::-1][:2], random.uniform(0.1, 1, (3, classes, 2)))
    settings: dict[str, Any] = {
        "counts": counts,
        "class_names": [str(index) for index in range(classes)],
        "order": order,
        "accuracy": random.uniform(0, 100, classes),
        "false_positives": wrong,
        "cumulative": np.cumsum(wrong[order]),
        "similarity": blocks(weight @ weight.T / 8),
        "affinity": blocks(weight @ weight.T),
        "offsets": {kind: random.normal(size=classes) for kind in plots_offsets.KINDS},
        "components": {kind: random.uniform(1e-4, 1, classes) for kind in ("attraction", "repulsion")},
        "logit_means": {sign: random.normal(size=classes) for sign in ("positive", "negative")},
        "log_classes": math.log(classes),
        "separated": order,
        "separability": {kind: random.uniform(1, 9, classes) for kind in ("raw", "unit")},
        "boundaries": random.normal(size=classes),
        "history": History(np.arange(1, 4), {kind: random.uniform(0.1, 1, (3, classes)) for kind in NAMES}, parts),
        "margins": margin_curves(DBM(torch.from_numpy(counts)), torch.from_numpy(order)),
        **samples(random, classes),
    }
    return Analysis(name, **{**settings, **changes})


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels, so that the pictures are drawn faster."""
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 60)


def pixels(figure: Figure) -> np.ndarray:
    picture = figures.png(figure)
    found = image.imread(io.BytesIO(picture))[:, :, :3]
    assert 300 <= found.shape[1] < 2500
    colours = np.unique((255 * found[::2, ::2]).astype(int) @ [65536, 256, 1])
    assert len(colours) > 20
    return found


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.stem for entry in ENTRIES])
def test_every_picture_of_two_runs_and_many_classes(entry: Any) -> None:
    pixels(entry.draw([made("ce", 2000), made("bs", 2000, 1)]))


@pytest.mark.parametrize("stem", ["similarity", "balance", "angles", "gradient_parts", "boundaries", "offsets"])
def test_pictures_of_one_run_and_ten_classes(stem: str) -> None:
    entry = next(entry for entry in ENTRIES if entry.stem == stem)
    pixels(entry.draw([made("bs", 10)]))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.stem for entry in ENTRIES])
def test_every_picture_says_which_run_has_the_highest_number(entry: Any) -> None:
    runs = [made("ce", 30), made("bs", 30, 1), made("lade", 30, 2)]
    numbers = {run.name: entry.number(run) for run in runs}
    assert all(map(math.isfinite, numbers.values()))
    said = extremes(entry.what, numbers)
    high = max(numbers, key=lambda name: numbers[name])
    assert said.startswith(f"{high} has the highest {entry.what}, {numbers[high]:.3g}, ") or "All have the same" in said


def test_titles_captions_and_stems_are_there_once() -> None:
    assert len({entry.stem for entry in ENTRIES}) == len({entry.title for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.caption.endswith(".") for entry in ENTRIES)


def test_many_classes_are_averaged_in_blocks_and_ranges() -> None:
    large, small = made("bs", 2000), made("bs", 10)
    assert large.similarity.values.shape == (BLOCKS, BLOCKS)
    assert small.similarity.values.shape == (10, 10)
    figure = plots_offsets.offsets([large])
    assert len(figure.axes[0].lines[0].get_xdata()) == figures.BINS
    figure = plots_offsets.offsets([small])
    assert len(figure.axes[0].lines[0].get_xdata()) == 10
    figure = plots_classes.history([large], ("attraction", "repulsion"))
    assert [len(axis.lines) for axis in figure.axes[:2]] == [figures.BINS, figures.BINS]


def test_one_colour_scale_for_all_runs() -> None:
    weak = Matrix(np.array([[np.nan, 0.1], [0.1, np.nan]]), np.array([0, 1, 2]))
    strong = Matrix(np.array([[np.nan, -0.8], [-0.8, np.nan]]), np.array([0, 1, 2]))
    runs = [made("ce", 2, similarity=weak), made("bs", 2, similarity=strong)]
    figure = plots_classes.similarity(runs)
    assert [axis.images[0].get_clim() for axis in figure.axes[:2]] == [(-0.8, 0.8), (-0.8, 0.8)]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["300", "1"]


def test_errors_spread_evenly_are_a_straight_line_for_each_run() -> None:
    runs = [made("ce", 10, cumulative=np.array([9, *range(10, 19)])), made("bs", 10, cumulative=np.arange(4, 14))]
    (axis,) = plots_classes.false_positives(runs).axes
    straight = [line for line in axis.lines if line.get_linestyle() == ":" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in straight] == [[0, 10], [0, 10]]
    assert [list(line.get_ydata()) for line in straight] == [[0, 18], [0, 13]]
    assert straight[0].get_color() == axis.lines[0].get_color() == "black"


def test_balance_metrics_stand_under_the_affinities() -> None:
    balance = {"balance_dot": 0.25, "balance_angle": 0.031, "balance_norm": 4.0}
    run = made("bs", 10)
    run.summary.update(balance)
    figure = plots_classes.affinity([run, made("ce", 10)])
    text = figure.axes[0].get_xlabel()
    assert text.splitlines()[1] == "$B_D^2$ 0.25, $B_A^2$ 0.031, $B_L^2$ 4"
    assert "\n" not in plots_classes.similarity([run]).axes[0].get_xlabel()


def test_mean_logits_of_all_runs_are_on_one_axis() -> None:
    tall = {sign: np.linspace(0, 40, 10) for sign in ("positive", "negative")}
    figure = plots_classes.logit_means([made("lade", 10), made("bs", 10, logit_means=tall)])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.axes[0].get_ylim()[1] >= 40
    assert [list(axis.lines[2].get_ydata()) for axis in figure.axes] == [[math.log(10)] * 2] * 2


def test_lines_between_the_groups_are_where_the_counts_say() -> None:
    counts = np.array([5, 200, 30, 101, 19, 20])
    analysis = made("ce", 6, counts=counts, order=np.argsort(-counts, kind="stable"))
    assert plots_classes.boundaries(analysis) == [2, 4]
    assert plots_classes.boundaries(made("ce", 2, counts=np.array([3, 2]))) == []


def test_angles_are_of_groups_and_of_a_few_classes() -> None:
    few = made(
        "ce",
        3,
        counts=np.array([2, 200, 50]),
        order=np.array([1, 2, 0]),
        target=np.array([0, 0, 0, 1, 2]),
        angles={"weight": np.array([10.0, 20, 45, 70, np.nan])},
    )
    found = plots_samples.angle_sets(few, "weight", classes=3)
    assert [label for label, _ in found] == ["many\n1 class", "medium\n1 class", "few\n1 class", "200", "50", "2"]
    assert [values.tolist() for _, values in found] == [[70], [], [10, 20, 45], [70], [], [10, 20, 45]]
    assert plots_samples.mean_and_quartiles(found[2][1]) == [25, 15, 20, 32.5]
    assert np.isnan(plots_samples.mean_and_quartiles(found[1][1])).all()
    labels = [label for label, _ in plots_samples.angle_sets(made("ce", 100), "mean", classes=12)]
    assert [label.splitlines()[0] for label in labels] == ["many", "medium", "few"]


def test_violins_are_where_there_are_angles() -> None:
    """One angle, many alike, none: a violin for each group that has some, at its angles, however many there are."""
    counts, target = np.array([200, 50, 2]), np.array([0] * 20000 + [1])
    kinds = {"weight": np.append(np.full(20000, 30.0), 80), "mean": np.append(np.linspace(0, 60, 20000), 20)}
    run = made("ce", 3, counts=counts, order=np.arange(3), target=target, angles=kinds)
    figure = plots_samples.angles([run])
    assert len(figure.axes[0].collections) == len(figure.axes[1].collections) == 2 * 3  # violin, quartiles, mean
    body = figure.axes[1].collections[0].get_paths()[0].vertices
    assert (body[:, 1].min(), body[:, 1].max()) == (0, 60)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [30, 80]


def test_parts_of_the_rarest_class_are_lines_and_stars() -> None:
    counts, epochs = np.array([30, 2, 7]), np.arange(1, 9)
    values = np.arange(1.0, 25).reshape(8, 3, 1)
    values[7, 2] = 0  # in no batch with it: no point on a log axis
    history = History(epochs, {}, Parts(epochs, np.array([1]), values))
    runs = [made("ce", 3, counts=counts, history=history), made("ldam", 3, counts=counts, history=None)]
    figure = plots_parts.gradient_parts(runs)
    lines = figure.axes[0].lines
    assert len(lines) == 2 * plots_parts.LINES
    assert (lines[0].get_xdata().tolist(), lines[0].get_ydata().tolist()) == ([7, 30], [3, 1])
    assert (lines[1].get_xdata().tolist(), lines[1].get_ydata().tolist()) == ([2], [2])
    assert (lines[-2].get_xdata().tolist(), lines[-2].get_ydata().tolist()) == ([30], [22])
    assert [axis.get_title() for axis in figure.axes[:-1]] == ["ce"]
    figure = plots_parts.gradient_parts(runs[1:])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not applicable"]


def test_a_bias_has_a_panel_where_some_run_has_one() -> None:
    without = made("zero-offset", 10, offsets={"test features": np.arange(10.0)}, boundaries=None)
    figure = plots_offsets.offsets([made("bs", 10), without])
    assert [axis.get_ylabel() for axis in figure.axes][-1] == "$-b_c$ [logit]"
    assert [len(axis.lines) for axis in figure.axes] == [2, 1, 1, 1]
    assert len(plots_offsets.offsets([without]).axes) == 1
    figure = plots_offsets.boundaries([without])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not applicable"]


def test_runs_without_components_are_left_out_and_named() -> None:
    without = made("ldam", 10, components="its loss has a margin", history=None)
    figure = plots_classes.components([made("bs", 10), without])
    assert [line.get_label() for line in figure.axes[0].lines] == ["bs"]
    figure = plots_classes.components([without])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not applicable"]
    gone = {name: np.full((3, 10), np.nan) for name in NAMES}
    figure = plots_classes.history([made("ldam", 10, history=History(np.arange(3), gone))], NAMES)
    assert [text.get_text() for text in figure.axes[0].texts] == ["not applicable"]


def test_values_that_are_not_there_are_no_error() -> None:
    nothing = np.full(10, np.nan)
    hole = made("ce", 10, offsets={"test features": nothing}, components="its loss is focal")
    assert figures.png(plots_offsets.offsets([hole])).startswith(b"\x89PNG")
    assert figures.png(plots_classes.components([hole])).startswith(b"\x89PNG")


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.stem for entry in ENTRIES])
def test_numbers_of_what_is_not_there_are_nan_without_a_warning(entry: Any) -> None:
    """One class alone is in the test set: its samples have no mean logit of another class beside theirs."""
    nothing = np.full(10, np.nan)
    means = {"positive": np.append(nothing[1:], 2.0), "negative": np.append(nothing[1:] * 0 + 1, np.nan)}
    angles = dict.fromkeys(("weight", "mean"), nothing)
    hole = made("ce", 10, accuracy=nothing, logit_means=means, similarity=Matrix(nothing[None], nothing), angles=angles)
    without = ("accuracy", "logits", "logit_means", "similarity", "angles")
    assert math.isnan(entry.number(hole)) == (entry.stem in without)
