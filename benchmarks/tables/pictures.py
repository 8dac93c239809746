"""Pictures of what was measured, as PNG: cost against the number of classes, and how near ours is to the limits.

`lt-kernels bench --plot` draws them from benchmarks/results into docs/pictures: <device>-time.png and -memory.png from
the sweeps of `--growth`, <device>-limits.png from the cases of docs/kernels/benchmarks.md.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks import growth, results
from benchmarks.growth import Line
from benchmarks.providers import LIMITS
from benchmarks.results import Row
from benchmarks.tables.readme import APART
from lt_kernels.system.storage import write_whole

# Okabe and Ito's colours, which people who confuse red with green tell apart; each has a marker of its own too.
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#0072b2", "marker": "o"},
    "eager": {"color": "#d55e00", "marker": "s"},
    "compile": {"color": "#009e73", "marker": "^"},
    "torch": {"color": "#cc79a7", "marker": "D"},
    "torch-chunked": {"color": "#e69f00", "marker": "v"},
    "pml": {"color": "#56b4e9", "marker": "P"},
}
OTHER = {"color": "black", "marker": "x"}
GUIDES = {1: ":", 2: "--"}  # the line style of a power of C
NAMES = {
    "ours": "lt_kernels",
    "eager": "eager torch",
    "compile": "torch.compile",
    "torch": "torch, plain",
    "torch-chunked": "torch, chunked",
    "pml": "pytorch-metric-learning",
}
WORDS = {
    "time": "forward and backward [ms]",
    "peak extra memory": "peak memory beyond the inputs [MiB]",
}
TITLES = {"time": "Time against the number of classes", "peak extra memory": "Memory against the number of classes"}
FILES = {"time": "time", "peak extra memory": "memory"}
LIMIT_COLOURS = {"products": "#0072b2", "products-onednn": "#56b4e9", "clone": "#e69f00"}
LIMIT_WORDS = {
    "products": "the limit is the bare matrix products",
    "products-onednn": "the limit is the bare matrix products by oneDNN",
    "clone": "the limit is one read and one write of the logits",
}


def draw(folder: Path, into: Path) -> list[Path]:
    """Draw what the results in `folder` and its folder of sweeps have; the files written."""
    made = {}
    for path in sorted((folder / growth.FOLDER).glob("*.csv")):
        rows = results.read(path)
        for metric, word in FILES.items():
            drawn = [line for line in growth.lines(rows) if line.axis == "C" and line.metric == metric]
            if drawn:
                made[into / f"{path.stem}-{word}.png"] = curves(drawn, metric, about(rows))
    for path in sorted(path for path in folder.glob("*.csv") if not path.name.startswith(APART)):
        rows = results.read(path)
        shares = limit_shares(rows)
        if shares:
            made[into / f"{path.stem}-limits.png"] = limit_bars(shares, about(rows))
    into.mkdir(parents=True, exist_ok=True)
    for path, figure in made.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
        write_whole(path, picture.getvalue())
    return list(made)


def about(rows: Sequence[Row]) -> str:
    """The device in words."""
    return f"{rows[0].device}, {rows[0].threads} threads, torch {rows[0].torch}"


def _figure(width: float, height: float, panels: tuple[int, int] = (1, 1)) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(*panels, index + 1) for index in range(panels[0] * panels[1])]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(lines: Sequence[Line], metric: str, device: str) -> Figure:
    """One panel an operator, one line a provider, both axes logarithmic; the legend has a panel of its own."""
    operators = list(dict.fromkeys(line.operator for line in lines))
    across = min(3, len(operators) + 1)
    down = math.ceil((len(operators) + 1) / across)
    figure, axes = _figure(4.4 * across, 3.7 * down + 0.4, (down, across))
    handles: dict[str, Artist] = {}
    for axis, operator in zip(axes, operators):
        own = [line for line in lines if line.operator == operator]
        for line in own:
            sizes, figures = zip(*line.points)
            words = NAMES.get(line.provider, line.provider)
            style = STYLES.get(line.provider, OTHER)
            (handles[words],) = axis.plot(sizes, figures, linewidth=1.6, markersize=5, **style)
        handles |= {words: guide for words, guide in _guides(axis, own).items() if words not in handles}
        _logarithmic(axis)
        axis.set_title(f"{operator}\n{own[0].fixed.replace(' ', ', ')}", fontsize=10)
        axis.set_xlabel("classes C")
        axis.set_ylabel(WORDS[metric])
    for axis in axes[len(operators) :]:
        axis.set_axis_off()
    axes[len(operators)].legend(handles.values(), handles.keys(), loc="center", frameon=False, fontsize=11)
    figure.suptitle(f"{TITLES[metric]} ({device})", fontsize=12)
    return figure


def _guides(axis: Axes, lines: Sequence[Line]) -> dict[str, Artist]:
    """A thin grey line of the expected slope through the last point of ours, no lower than the lowest figure."""
    found: dict[str, Artist] = {}
    for line in lines:
        if line.provider == "ours":
            power, (size, figure) = int(growth.expected(line)[0]), line.points[-1]
            lowest = min(figure for other in lines for _, figure in other.points)
            least = max(line.points[0][0], size * (lowest / figure) ** (1 / power))
            ends = (least, size), (figure * (least / size) ** power, figure)
            drawn = axis.plot(*ends, color="0.45", linewidth=1, linestyle=GUIDES[power], zorder=1)
            found["proportional to C" if power == 1 else "proportional to C²"] = drawn[0]
    return found


def _logarithmic(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(numticks=12))
        side.set_major_formatter("{x:,.7g}")
        side.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)


def limit_shares(rows: Sequence[Row]) -> list[tuple[str, str, float]]:
    """(case in words, limit, percent): the limit's time over ours, operators in the order of the file.

    Not of repulsion, which needs only half of the products, and those screened in int8: they are no limit to it.
    """
    times = {(*row.place[:3], row.sizes, row.provider): row.p50 for row in rows if _timed(row)}
    found = []
    for (operator, case, dtype, sizes, provider), ours in times.items():
        for limit in LIMITS if provider == "ours" and operator != growth.REPULSION else ():
            least = times.get((operator, case, dtype, sizes, limit))
            beaten = limit == "products" and (operator, case, dtype, sizes, "products-onednn") in times
            if least is not None and not beaten:
                words = f"{operator}  {sizes}" + ("" if dtype == "float32" else f" {dtype}")
                found.append((words, limit, 100 * least / ours))
    return found


def _timed(row: Row) -> bool:
    return row.metric == "time" and row.mode == "both"


def limit_bars(shares: Sequence[tuple[str, str, float]], device: str) -> Figure:
    """A bar a case, grouped by limit, the share at its end; a line where ours would be the limit itself."""
    ordered = sorted(shares, key=lambda share: (LIMITS.index(share[1]), share[0].split()[0], -share[2]))
    figure, (axis,) = _figure(10, 1.6 + 0.27 * len(ordered))
    for place, (_, limit, share) in enumerate(ordered):
        axis.barh(place, share, 0.72, color=LIMIT_COLOURS[limit])
        axis.text(share + 1, place, f"{share:.0f}", va="center", fontsize=8, bbox={"color": "white", "pad": 0.5})
    axis.set_yticks(range(len(ordered)), [words for words, _, _ in ordered], fontsize=8)
    axis.set_ylim(len(ordered) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.axvline(100, color="0.3", linewidth=1, linestyle="--")
    axis.set_xlim(0, max(108.0, 1.08 * max(share for _, _, share in ordered)))
    axis.set_xlabel("time of the limit in percent of ours, forward and backward")
    axis.set_title(f"How near to the limit ({device})", fontsize=12)
    used = [limit for limit in LIMITS if any(share[1] == limit for share in ordered)]
    patches = [Patch(color=LIMIT_COLOURS[limit], label=LIMIT_WORDS[limit]) for limit in used]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
