"""Cost as the work grows: one size goes from small to large while the others stay, and how steep the line is.

`lt-kernels bench --growth` measures it, ours and eager alone, into benchmarks/results/growth/<device>.csv: a folder of
its own, because these cases are lines and not rows of the benchmark's table. A case is named after its sweep and its
point, such as along-C-64000.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.cases import COSINE, HALF, SWEEP, Case
from benchmarks.results import Row

PROVIDERS = ("ours", "eager")
FOLDER = "growth"
PRODUCTS = ("linear_cross_entropy", COSINE)
REPULSION = "logit_weight_repulsion"
# What each operator is swept along.
AXES = {
    "offset_cross_entropy": "CN",
    "linear_cross_entropy": "CNd",
    COSINE: "CNd",
    "lade_regularizer": "CN",
    REPULSION: "Cd",
}
# The sizes that stay while another grows.
FIXED = {
    "cpu": {"N": 64, "C": 8_000, "d": 128},
    "cuda": {"N": 1_024, "C": 64_000, "d": 512},
    "tiny": {"N": 8, "C": 24, "d": 16},
}
POINTS = {
    "C": (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000),
    "N": (16, 64, 256, 1_024, 4_096, 16_384),
    "d": (32, 64, 128, 256, 512, 1_024, 2_048, 4_096),
}
# Its work grows with the square, so its points lie closer; 8,000 classes are enough for d on a GPU too.
REPULSION_POINTS = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
REPULSION_CLASSES = 8_192
TINY = (6, 12, 24, 48)

# A local slope that differs by more than this from the fitted exponent is a bend.
TOLERANCE = 0.25
FEWEST = 3  # points that an exponent is fitted to
# MiB; below, a process's pages and stacks are the larger part of what is measured.
FLOOR = 1.0


def cases(device: str = "cpu", tiny: bool = False) -> list[Case]:
    """Every point of every sweep, for "cpu" or "cuda"; `tiny`: four points at sizes that a test can afford."""
    fixed = FIXED["tiny" if tiny else device]
    return [
        _case(operator, axis, point, device, fixed if tiny or operator != REPULSION else fixed | _of_repulsion(device))
        for operator, axes in AXES.items()
        for axis in axes
        for point in (TINY if tiny else REPULSION_POINTS if (operator, axis) == (REPULSION, "C") else POINTS[axis])
    ]


def _of_repulsion(device: str) -> dict[str, int]:
    return {"C": REPULSION_CLASSES, "d": FIXED[device]["d"]}


def _case(operator: str, axis: str, point: int, device: str, fixed: dict[str, int]) -> Case:
    """As in the main list, a GPU multiplies and reads in bfloat16."""
    sizes = fixed | {axis: point}
    rows = 0 if operator == REPULSION else sizes["N"]
    half = device == "cuda" and operator in (*HALF, COSINE)
    dtype = torch.bfloat16 if half else torch.float32
    return Case(operator, f"{SWEEP}{axis}-{point}", rows, sizes["C"], sizes["d"], dtype)


@dataclass(frozen=True)
class Line:
    """What one provider needs for one operator along one size: (size, figure) in ascending order."""

    operator: str
    axis: str
    provider: str
    metric: str
    unit: str
    fixed: str  # the sizes that stay, and the dtype unless it is float32
    points: tuple[tuple[int, float], ...]

    @property
    def upper(self) -> tuple[tuple[int, float], ...]:
        """The points in the upper half of the log axis, and not fewer than the last three: there the fixed costs of a
        call no longer rule.
        """
        middle = math.sqrt(self.points[0][0] * self.points[-1][0])
        above = tuple(point for point in self.points if point[0] >= middle)
        return above if len(above) >= FEWEST else self.points[-FEWEST:]

    @property
    def exponent(self) -> float | None:
        """b of figure = a size^b by least squares on the logarithms of the upper points; None for fewer than three."""
        return slope(self.upper) if len(self.points) >= FEWEST else None

    def bends(self) -> list[tuple[int, int, float]]:
        """Neighbouring sizes, over the whole line, between which the local slope is not the fitted one."""
        fitted = self.exponent
        if fitted is None:
            return []
        pairs = zip(self.points, self.points[1:])
        local = [(first[0], second[0], slope((first, second))) for first, second in pairs]
        return [found for found in local if abs(found[2] - fitted) > TOLERANCE]


def slope(points: Sequence[tuple[int, float]]) -> float:
    """The least-squares slope of log figure against log size."""
    across, up = [math.log(size) for size, _ in points], [math.log(figure) for _, figure in points]
    x, y = sum(across) / len(across), sum(up) / len(up)
    return sum((a - x) * (b - y) for a, b in zip(across, up)) / sum((a - x) ** 2 for a in across)


def lines(rows: Iterable[Row]) -> list[Line]:
    """The lines of a results file: forward and backward together; memory from one MiB on."""
    found: dict[tuple[str, str, str, str, str, str], list[tuple[int, float]]] = {}
    for row in rows:
        place = re.fullmatch(rf"{SWEEP}([NCd])-(\d+)", row.case)
        known = row.metric == "time" or (row.metric == "peak extra memory" and row.p50 >= FLOOR)
        if place and row.mode == "both" and known and row.p50 > 0:
            stays = re.sub(rf"{place[1]}=\d+ ?", "", row.sizes).strip()
            stays += "" if row.dtype == "float32" else f" {row.dtype}"
            key = (row.operator, place[1], row.provider, row.metric, row.unit, stays)
            found.setdefault(key, []).append((int(place[2]), row.p50))
    drawn = [Line(*key, tuple(sorted(points))) for key, points in found.items()]
    return sorted(drawn, key=_order)


def _order(line: Line) -> tuple[int, ...]:
    known = tuple(AXES)
    place = known.index(line.operator) if line.operator in known else len(known)
    first = PROVIDERS.index(line.provider) if line.provider in PROVIDERS else len(PROVIDERS)
    return place, "CNd".index(line.axis), int(line.metric != "time"), first


def expected(line: Line) -> str:
    """The exponent that the work, or what has to be held, grows with.

    Time: all operators do their work for each row, class and feature; repulsion for each pair of classes. Memory: the
    gradient of the logits or of the class weights, N C and C d; eager repulsion holds C x C matrices, beside which d
    does not count; ours holds logits along N up to the memory budget and no more.
    """
    time, ours = line.metric == "time", line.provider == "ours"
    if line.operator == REPULSION and line.axis == "C":
        return "2" if time or not ours else "1"
    if line.operator == REPULSION and not time and not ours:
        return "0"
    if line.operator in PRODUCTS and line.axis == "N" and not time and ours:
        return "1, past the budget 0"
    return "1"
