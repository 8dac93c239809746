"""The time that each unit of an H200 takes for a launch, and the launch's time from them.

All rates stand here with their source; all work comes from launches and machine code. A kernel that reads and writes
takes as long as its busiest unit. One that multiplies tiles cannot compute exponentials of a tile before its product is
made: where one program has a multiprocessor for itself the times add up, where two share it they overlap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from benchmarks.cases import Case
from benchmarks.gpu.roofline import work
from benchmarks.gpu.sheets.goals import COPY, FP32
from benchmarks.gpu.sheets.sass import Loop
from benchmarks.gpu.traffic import Operation

PROCESSORS = 132
CLOCK = 1.755e9  # Hz: between what it runs at under matrix products (1.4 to 1.6) and at most (1.98)
CACHE = 7.0e12  # bytes a second from the L2 cache: others measured 5.5 to 7.8 on H100s; tiled products take 7
PORT = 64 * CLOCK  # bytes a second that one multiprocessor gets from it: 64 a clock, by the vendor
MATRIX = 790e12  # bfloat16 operations a second of 8,192 x 8,192 x 8,192, as measured on an H200 (769 to 798)
LIBRARY = 700e12  # the same of the library's products of other shapes, where all multiprocessors are busy
RELATIVE = {torch.int8: 2.0, torch.float32: 0.07}  # to bfloat16; float32 without TensorFloat-32: 50e12 of its FMA units
SERIAL = 0.6  # of the matrix units' rate, where the assembler makes each matrix instruction wait for the last
ISSUE, LANES, SPECIAL = 4, 32, 16  # a clock: warps that issue, threads of a warp, special functions
REGISTERS, SHARED, WARPS = 65_536, 232_448, 64  # of a multiprocessor
CACHED = 40e6  # bytes that stay in the L2 cache of 50 MB until they are read again
LAUNCH = 2e-6  # seconds from the end of a kernel until the next one is at work


class Resources(NamedTuple):
    """What a program needs, and whether its matrix instructions wait for each other."""

    registers: int
    shared: int
    warps: int
    serial: bool = False

    def resident(self) -> int:
        """Programs that share a multiprocessor."""
        rounded = -(-self.registers // 8) * 8 * LANES * self.warps
        by = (REGISTERS // max(rounded, 1), SHARED // (self.shared + 1024), WARPS // self.warps)
        return max(1, min(by))


class Times(NamedTuple):
    """Seconds of each unit for one launch, and of the launch."""

    memory: float = 0.0
    cache: float = 0.0
    matrix: float = 0.0
    issue: float = 0.0
    special: float = 0.0
    total: float = 0.0


def busy(programs: int) -> int:
    """Multiprocessors that have something to do."""
    return max(1, min(PROCESSORS, programs))


def streamed(bytes: float, elements: float, loops: list[Loop], programs: int, held: Resources) -> Times:
    """A kernel that reads and writes; `bytes` are those of its tensors, each once.

    With two hot loops what the second reads is in the cache, unless more than that is in flight.
    """
    several = busy(programs)
    each = [elements / loop.elements for loop in loops]  # turns of all threads together
    moved = sum(turns * loop.bytes for turns, loop in zip(each, loops))
    issue = sum(turns * loop.instructions for turns, loop in zip(each, loops)) / (ISSUE * LANES)
    special = sum(turns * loop.special for turns, loop in zip(each, loops)) / SPECIAL
    flying = bytes / 2 / max(programs, 1) * min(programs, PROCESSORS * held.resident())
    again = elements * 2 if len(loops) > 1 and flying > CACHED else 0
    times = Times(
        memory=(bytes + again) / min(COPY, several * PORT),
        cache=moved / min(CACHE, several * PORT),
        issue=issue / (several * CLOCK),
        special=special / (several * CLOCK),
    )
    return times._replace(total=max(times) + LAUNCH)


class Tiles(NamedTuple):
    """The tiles of a launch: their number, sizes, and the operands."""

    number: int
    rows: int
    columns: int
    depth: int
    step: int  # of the depth
    itemsize: int
    products: int = 1  # of operands for one product: three where float32 is split in two


def tiled(bytes: float, tiles: Tiles, step: Loop, after: Loop, held: Resources, rate: float = 1.0) -> Times:
    """A kernel that multiplies tiles; the warps of a program issue `step` for each step and `after` for each tile."""
    flops = 2 * tiles.rows * tiles.columns * tiles.depth * tiles.products
    speed = MATRIX * rate * (SERIAL if held.serial else 1.0) / PROCESSORS
    steps = math.ceil(tiles.depth / tiles.step)
    matrix = flops / speed
    issue = (steps * step.instructions + after.instructions) * held.warps / ISSUE / CLOCK
    special = after.special * held.warps * LANES / SPECIAL / CLOCK
    alone = max(after.instructions * held.warps / ISSUE / CLOCK, special)
    share = held.resident()
    each = matrix + alone if share == 1 else max(matrix, issue, special, (matrix + alone) / share)
    turns = math.ceil(tiles.number / PROCESSORS)
    operands = (tiles.rows + tiles.columns) * tiles.depth * tiles.itemsize
    times = Times(
        memory=bytes / COPY,
        cache=tiles.number * operands / CACHE,
        matrix=turns * matrix,
        issue=turns * issue,
        special=turns * special,
    )
    return times._replace(total=max(turns * each, times.memory, times.cache) + LAUNCH)


def library(operation: Operation) -> Times:
    """A kernel of the library's: a product, or something that reads and writes."""
    memory, matrix = operation.bytes / COPY, 0.0
    if operation.product is not None:
        rate = RELATIVE.get(operation.dtype, 1.0) if operation.dtype else 1.0
        matrix = operation.flops / (LIBRARY * rate * filled(*operation.product))
    return Times(memory=memory, matrix=matrix, total=max(memory, matrix) + LAUNCH)


def filled(rows: int, depth: int, columns: int) -> float:
    """The share of the multiprocessors' time that a product of the library's uses, with its best tiles and splits of
    the depth. Smaller tiles read more for each product: those of 128 x 128 reach four fifths of the rate.
    """
    shapes = ((128, 256, 1.0), (128, 128, 0.8), (64, 128, 0.6))
    splits = [2**power for power in range(6) if depth >> power >= 256 or power == 0]
    found = []
    for high, wide, rate in shapes:
        for split in splits:
            tiles = math.ceil(rows / high) * math.ceil(columns / wide) * split
            waves = math.ceil(tiles / PROCESSORS)
            whole = rows * columns / (math.ceil(rows / high) * high * math.ceil(columns / wide) * wide)
            found.append(rate * whole * tiles / (waves * PROCESSORS))
    return max(found)


def floor(case: Case, pairs: float) -> float:
    """Seconds below which no design comes: each input read and each gradient written once, each product made once.

    Of the repulsion: half of the products screened in int8, and exactly to float32 either the active pairs alone, whose
    rows come from the cache once for the cosines and once for the gradient, or all tiles as three bfloat16 products
    each, half of them for the cosines and all for the gradient.
    """
    least = work(case)
    if not pairs:
        return max(least.bytes / COPY, least.flops / MATRIX)
    listed = 2 * 2 * pairs * case.features * FP32.itemsize / CACHE
    whole = 3 * (1 + 2) * least.flops / MATRIX
    return least.bytes / COPY + least.flops / MATRIX / RELATIVE[torch.int8] + min(listed, whole)
