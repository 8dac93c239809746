"""The pictures of the analyses hold what is written in them: nothing is cut off, and no words lie on others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lt_kernels.train.analysis import plots_classes, plots_offsets, plots_samples
from lt_kernels.train.analysis.entries import ENTRIES, RECORDED
from lt_kernels.train.analysis.measures import Analysis
from lt_kernels.train.output import figures
from lt_kernels.train.run.components import NAMES, History
from tests.train.analysis.test_analysis_plots import made


def runs(number: int) -> list[Analysis]:
    """Runs of ten classes, some with names as long as those of runs in folders are."""
    names = [
        "ce",
        "runs/digits-lt/estimated-offset-predict/seed-10",
        "bs",
        *(f"a-variant-of-dbm-{i}" for i in range(9)),
    ]
    return [made(name, 10, seed) for seed, name in enumerate(names[:number])]


def unseen(axis: Axes) -> Iterator[Text]:
    """Labels of ticks beyond the ends of an axis, which Matplotlib makes and does not draw."""
    for each in (axis.xaxis, axis.yaxis):
        low, high = sorted(each.get_view_interval())
        for tick in (*each.get_major_ticks(), *each.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def words(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is written in a picture, and where, in points of the canvas."""
    figure.draw_without_rendering()
    hidden = {text for axis in figure.axes for text in unseen(axis)}
    hidden |= {text for axis in figure.axes if not axis.get_visible() for text in axis.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text not in hidden and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


def assert_fits(figure: Figure) -> None:
    """Nothing that is written is cut off, or lies on something else."""
    found = words(figure)
    assert len(found) > 5
    for text, box in found:
        assert min(box.x0, box.y0) > -1, text
        assert max(box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) < 1, text
    for (text, one), (other, two) in itertools.combinations(found, 2):
        shared = Bbox.intersection(one, two)
        assert shared is None or min(shared.width, shared.height) < 1, (text, other)


@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.stem for entry in ENTRIES])
def test_all_words_are_within_the_picture_and_beside_each_other(entry: Any, number: int) -> None:
    assert_fits(entry.draw(runs(number)))


@pytest.mark.parametrize("few", [[500] * 10, [3, 3, 3, 3, 3, 4, 4, 4, 4, 4], [31, *range(90, 98), 99], [9, *[12] * 9]])
@pytest.mark.parametrize("stem", ["accuracy", "boundaries", "logit_means", "gradient_parts", "offsets_by_epoch"])
def test_counts_that_are_close_to_each_other_are_named(stem: str, few: list[int]) -> None:
    counts = np.array(few)
    run = made("bs", 10, counts=counts, order=np.argsort(-counts, kind="stable"))
    figure = next(entry for entry in ENTRIES if entry.stem == stem).draw([run, run])
    assert_fits(figure)
    axis = figure.axes[-1].yaxis if stem == "offsets_by_epoch" else figure.axes[0].xaxis
    low, high = sorted(axis.get_view_interval())
    seen = [
        label.get_text() for label, place in zip(axis.get_ticklabels(), axis.get_ticklocs()) if low <= place <= high
    ]
    assert seen[0] == str(min(few))
    assert all(min(few) <= float(label) <= max(few) for label in seen)


def test_bars_of_many_runs_differ_by_colour_or_pattern() -> None:
    many = runs(9)
    (axis,) = plots_samples.separability(many).axes
    bars = [bar.patches[0] for bar in axis.containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == len(many)
    violins = plots_samples.angles(many).axes[0]
    handles = [bar.patches[0] for bar in violins.containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in handles}) == len(many)
    drawn = {(tuple(body.get_facecolor()[0]), body.get_hatch()) for body in violins.collections if body.get_hatch()}
    assert drawn == {(bar.get_facecolor(), bar.get_hatch()) for bar in handles if bar.get_hatch()} != set()
    styles = figures.bar_styles([*(f"method {index}" for index in range(24)), "ce"])
    assert len({tuple(style.values()) for style in styles.values()}) == 25


def test_markers_at_the_ends_of_a_common_scale_are_whole() -> None:
    far = dict.fromkeys(plots_offsets.KINDS, np.linspace(10, 100, 10))
    near = {**far, plots_offsets.BIAS: np.linspace(-0.2, 0.1, 10)}
    *_, axis = plots_offsets.offsets([made("ce", 10, offsets=near)]).axes
    low, high = axis.get_ylim()
    assert axis.lines[0].get_ydata().min() - low > 0.02 * (high - low)


def test_only_what_was_recorded_has_a_panel() -> None:
    """A row a run where all have both values, and otherwise the panels that there are."""
    random = np.random.default_rng(0)
    whole = {name: random.uniform(0.1, 1, (3, 10)) for name in NAMES}
    part = {**whole, "estimated_offset": np.full((3, 10), np.nan)}
    ce, learned = (made(name, 10, history=History(np.arange(3), one)) for name, one in (("ce", part), ("uc", whole)))
    panels = [axis.get_title() for axis in plots_classes.history([ce, learned, ce], RECORDED).axes]
    assert panels == ["ce: offset", "uc: offset", "uc: estimated offset", "ce: offset", ""]
    figure = plots_classes.history([learned, learned, learned], RECORDED)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 2)
    tall, flat = (plots_classes.history([learned] * number, ("attraction", "repulsion")) for number in (6, 1))
    bars = [figure.axes[-1] for figure in (tall, flat)]
    for figure in (tall, flat):
        figure.draw_without_rendering()
    assert bars[0].bbox.width == pytest.approx(bars[1].bbox.width, rel=0.5)
