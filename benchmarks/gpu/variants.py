"""Each open choice of the design timed against its alternatives on the device, and the winner said.

A choice is something in a kernel's module, which is patched here. All ways of all choices are first run once by many
processes side by side, because compiling takes longer than timing: Triton keeps what they compile on the disk.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks import measure
from benchmarks.cases import Case, cases
from benchmarks.gpu.report import Check
from benchmarks.gpu.roofline import BF16, COSINE, FP32, LINEAR, REPULSION
from benchmarks.problems import problem
from benchmarks.providers import providers
from benchmarks.results import first_line

MINUTES = 3.0
OFFSET, PLAIN = "offset_cross_entropy", "cross_entropy"
KERNELS = "lt_kernels.triton"
CALLS = 50  # in a row, where the host's time is meant


class Choice(NamedTuple):
    """A case, and ways to compute it: the first is the one that is in use, with nothing patched."""

    title: str
    operator: str
    name: str
    dtype: torch.dtype
    ways: dict[str, dict[str, Any]]  # what is patched, by its full name
    host: bool = False  # whether it is about the host's time

    @property
    def case(self) -> Case:
        """The case of the benchmark."""
        wanted = self.operator, self.name, self.dtype
        (found,) = (case for case in cases("cuda") if (case.operator, case.name, case.dtype) == wanted)
        return found


def _tile(*sizes: int) -> Callable[..., Any]:
    """In the place of `tile_for`: rows, classes, features, warps and stages of a tile."""

    def chosen(*_: Any, **__: Any) -> Any:
        from lt_kernels.triton import linear

        return linear.Tile(*sizes)

    return chosen


def _never(*_: Any, **__: Any) -> bool:
    return False


def _anew(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int) -> None:
    """A launch by Triton's own binding, which looks at every argument again."""
    kernel[grid](**arguments, num_warps=warps, num_stages=stages)


PASSES = {"one pass": {}, "two passes": {f"{KERNELS}.rows.COUNTED": 0}}
TILES = {
    "as chosen": {},
    "128 x 128, 4 warps": {f"{KERNELS}.linear.tile_for": _tile(128, 128, 64, 4, 3)},
    "128 x 128, 8 warps": {f"{KERNELS}.linear.tile_for": _tile(128, 128, 64, 8, 3)},
    "128 x 256, 8 warps": {f"{KERNELS}.linear.tile_for": _tile(128, 256, 64, 8, 3)},
}
LIBRARY = {"our tiles": {}, "slabs of the library's products": {f"{KERNELS}.linear.on_matrix_units": _never}}
GROUPS = {"groups of rows": {}, "slabs": {"lt_kernels.ops.budget.GPU_GROUP_ROWS": 2**40}}
SCREEN = {
    "as chosen": {},
    "128 x 256 x 128": {f"{KERNELS}.gram.COLUMNS": 256, f"{KERNELS}.gram.DEPTH": 128},
    "128 x 128 x 64": {f"{KERNELS}.gram.COLUMNS": 128, f"{KERNELS}.gram.DEPTH": 64},
    "128 x 128 x 128": {f"{KERNELS}.gram.COLUMNS": 128, f"{KERNELS}.gram.DEPTH": 128},
}
CACHED = {"launches cached": {}, "launches bound anew": {f"{KERNELS}.launch._launch": _anew}}
CHOICES = (
    Choice("passes", OFFSET, "vocab-4096", BF16, PASSES),
    Choice("passes", PLAIN, "vocab-4096", BF16, PASSES),
    Choice("tiles of the products", LINEAR, "faces", BF16, TILES),
    Choice("tiles of the products", COSINE, "faces", BF16, TILES),
    Choice("tiles or the library", LINEAR, "faces", BF16, LIBRARY),
    Choice("groups or slabs", LINEAR, "vocab", BF16, GROUPS),
    Choice("tiles of the screening", REPULSION, "lwr-inat-sparse", FP32, SCREEN),
    Choice("tiles of the screening", REPULSION, "lwr-100k-sparse", FP32, SCREEN),
    Choice("launches", LINEAR, "inat", BF16, CACHED, host=True),
)


@contextmanager
def patched(way: dict[str, Any]) -> Iterator[None]:
    """Within the context the choice is made this way; what was remembered of another one is forgotten."""
    with ExitStack() as places:
        for target, value in way.items():
            places.enter_context(patch(target, value))
        forget()
        yield
    forget()


def forget() -> None:
    """Clear the caches of all functions of the package: plans that follow from a choice are remembered."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lt_kernels"):
            for value in vars(module).values():
                clear = getattr(value, "cache_clear", None)
                if callable(clear):
                    clear()


def provider(choice: Choice, check: Check) -> measure.Provider:
    """Ours, at the case of the choice."""
    case = choice.case.tiny() if check.tiny else choice.case
    (ours,) = providers(problem(case, check.device), ["ours"])
    return ours


def seconds(choice: Choice, ours: measure.Provider, device: str) -> float:
    """Forward and backward: by the device's clock, or the host's time of one of several calls in a row."""
    if not choice.host:
        return measure.once(ours, device, measure.Samples())
    begun = time.perf_counter()
    calls = CALLS if device == "cuda" else 1
    for _ in range(calls):
        ours.backward(ours.forward())
    spent = (time.perf_counter() - begun) / calls
    if device == "cuda":
        torch.cuda.synchronize()
    return spent


def tried(index: int, way: str) -> str:
    """Compile what one way of a choice needs by running it, in a process of its own; returns what went wrong."""
    choice = CHOICES[index]
    try:
        with patched(choice.ways[way]):
            (ours,) = providers(problem(choice.case, "cuda"), ["ours"])
            measure.once(ours, "cuda", measure.Samples())
    except Exception as error:
        return first_line(error)
    return ""


def broken() -> dict[tuple[int, str], str]:
    """The ways that do not run, by choice and name, with the reason."""
    every = [(index, way) for index, choice in enumerate(CHOICES) for way in choice.ways]
    workers = max(1, min(12, len(os.sched_getaffinity(0)) - 2))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        said = list(pool.map(tried, *zip(*every)))
    return {place: words for place, words in zip(every, said) if words}


def variants(check: Check) -> None:
    """Time every way of every choice; one line a way, and one for the winner."""
    ends = time.monotonic() + min(check.left(), 60 * MINUTES)
    wrong = broken() if check.device == "cuda" else {}
    check.say(f"compiled in {check.minutes * 60 - check.left():.0f} s  ")
    for index, choice in enumerate(CHOICES):
        left = ends - time.monotonic()
        if left <= 0:
            check.say(f"not timed, because {MINUTES:g} minutes were over: {choice.title}, {choice.name}  ")
            continue
        refused = {way: words for (place, way), words in wrong.items() if place == index}
        with check.guarded(f"variants, {choice.title}, {choice.name}"), check.kernels():
            one(choice, check, left / (len(CHOICES) - index), refused)
        if check.device == "cuda":
            torch.cuda.empty_cache()


def one(choice: Choice, check: Check, left: float, refused: dict[str, str]) -> None:
    """The ways of one choice in turns, for `left` seconds."""
    check.table(f"{choice.title}: {choice.operator} {choice.name}", "ms (p20 .. p80)")
    for way, words in refused.items():
        check.row(way, f"does not run: {words}")
    ours, ways = provider(choice, check), [way for way in choice.ways if way not in refused]
    found: dict[str, list[float]] = {way: [] for way in ways}
    ends, turns = time.monotonic() + left, 0
    while turns < 3 or (time.monotonic() < ends and turns < 100):
        for way in ways:
            with patched(choice.ways[way]):
                if not turns or choice.host:
                    seconds(choice, ours, check.device)  # what was forgotten is worked out again
                found[way].append(seconds(choice, ours, check.device))
        turns += 1
        if check.tiny:
            break
    for way, times in found.items():
        middle, low, high = measure.quantiles(times, 1e-3)
        check.row(way, f"{middle:.4g} ({low:.4g} .. {high:.4g})")
    check.say(f"\n{winner(found)}\n")


def winner(found: Mapping[str, Sequence[float]]) -> str:
    """Which way is the fastest, and by how much; none is where their middle halves overlap."""
    spread = {way: measure.quantiles(times) for way, times in found.items()}
    first, *others = sorted(spread, key=lambda way: spread[way][0])
    if not others:
        return f"**winner** {first}, the only one that runs"
    gain = spread[others[0]][0] / spread[first][0] - 1
    clear = spread[first][2] < spread[others[0]][1]
    return f"**winner** {first}, {gain:.1%} before {others[0]}{'' if clear else ', which is within the spread'}"
