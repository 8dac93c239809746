"""What a goal's call launches, with the machine code of each kernel, and the times of its units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu import code
from benchmarks.gpu.calls import nullcontext_of
from benchmarks.gpu.sheets import model, sass
from benchmarks.gpu.sheets.goals import Goal, Pairs
from benchmarks.gpu.sheets.model import Resources, Tiles, Times
from benchmarks.gpu.traffic import LISTS, Library, size

TARGET = 90


class Kernel(NamedTuple):
    """One launch or library call: its name, bytes, operations, and what its units take."""

    name: str
    bytes: float
    flops: float
    times: Times
    instructions: float = 0.0  # an element
    special: float = 0.0
    serial: bool = False


class Traced(Library):
    """Writes down the library's own kernels; of our operators, run as on a GPU, what they call."""

    def __init__(self) -> None:
        super().__init__()
        from lt_kernels.ops.backends import library

        self.kernels = {name: kernel for name, key, kernel in library.kernels_of("triton") if key == "CPU"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; in the place of one of ours its Triton kernel, within this mode."""
        kernel = self.kernels.get(func._schema.name.removeprefix("lt_kernels::"))
        if kernel is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        with self:
            return kernel(*args, **(kwargs or {}))


def traced(goal: Goal) -> tuple[list[Any], Library]:
    """Our launches and the library's operations of a goal's call, forward and backward, on tensors without memory."""
    from lt_kernels.triton.launch import recorded

    with ExitStack() as places:
        library, launches = places.enter_context(Traced()), places.enter_context(recorded())
        places.enter_context(patch("lt_kernels.ops.calling._forced", ["triton"]))
        # the mode that writes down the library's operations is not to be seen; and autocast does not know such tensors
        places.enter_context(patch("lt_kernels.core.private.dispatch_modes", lambda: False))
        places.enter_context(patch("torch.is_autocast_enabled", lambda *_: False))
        places.enter_context(patch("torch.autocast", nullcontext_of))
        torch.autograd.grad(*goal.call())
    return launches, library


def jobs(traces: Iterable[tuple[list[Any], Library]]) -> dict[str, code.Job]:
    """The distinct kernels of the launches."""
    every = (launch for launches, _ in traces for launch in launches if 0 not in launch.grid)
    found = (code.specialised(launch, TARGET, "") for launch in every)
    return {repr(job): job for job in found}


class Made(NamedTuple):
    """A kernel's machine code, and what its program needs."""

    binary: bytes
    held: Resources


def made(job: code.Job) -> Made:
    """Compile a job."""
    found = code.built(job)
    read = code.read(job, found)
    held = Resources(read.registers, read.shared, job.options["num_warps"], bool(read.warnings))
    return Made(found.asm["cubin"], held)


def kernels(launches: list[Any], library: Library, machine: dict[str, Made], pairs: Pairs) -> list[Kernel]:
    """All kernels of a call: the library's, then ours."""
    found = [Kernel(one.name, one.bytes, one.flops, model.library(one)) for one in library.operations]
    some = [(launch, repr(code.specialised(launch, TARGET, ""))) for launch in launches if 0 not in launch.grid]
    return found + [ours(launch, machine[place], pairs) for launch, place in some]


def ours(launch: Any, made: Made, pairs: Pairs) -> Kernel:
    """One launch: a kernel of tiles, one whose work depends on the active pairs, or one that reads and writes."""
    name, given = launch.kernel.fn.__name__, launch.arguments
    bytes = sum(size(value) for key, value in given.items() if isinstance(value, Tensor) and key not in LISTS)
    seldom = (name in DENSE or name == "split_kernel") and not _over(given, pairs)
    if seldom or name == "times_grad_kernel" or given.get("again"):  # it returns at once, the latter if grad is 1
        return Kernel(name, 0, 0, Times(total=model.LAUNCH))
    if name in TILES | DENSE:
        return _tiles(name, given, bytes, made)
    if name in LISTED:
        return _listed(name, launch, made, pairs)
    elements = logits(given)
    return _streamed(name, launch, bytes, elements, sass.hot(made.binary, bytes / elements), made.held)


def _streamed(name: str, launch: Any, bytes: float, elements: float, loops: list[sass.Loop], held: Resources) -> Kernel:
    times = model.streamed(bytes, elements, loops, math.prod(launch.grid), held)
    each = [(loop.instructions / loop.elements, loop.special / loop.elements) for loop in loops]
    instructions, special = (sum(numbers) for numbers in zip(*each))
    return Kernel(name, bytes, 0, times, instructions, special)


def logits(given: dict[str, Any]) -> int:
    """The elements that a kernel goes through: the logits, or its largest tensor."""
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and name not in LISTS}
    return tensors["logits"].numel() if "logits" in tensors else max(value.numel() for value in tensors.values())


def _tiles(name: str, given: dict[str, Any], bytes: float, made: Made) -> Kernel:
    tiles, again, rate = (TILES | DENSE)[name](given)
    step, after = sass.tile(made.binary)
    times = model.tiled(bytes + again, tiles, step, after, made.held, rate)
    threads = tiles.rows * tiles.columns / (model.LANES * made.held.warps)  # elements of one
    flops = 2 * tiles.number * tiles.rows * tiles.columns * tiles.depth * tiles.products
    each = after.instructions / threads, after.special / threads
    return Kernel(name, bytes + again, flops, times, *each, made.held.serial)


def _of_features(given: dict[str, Any]) -> tuple[Tiles, float, float]:
    """Of `linear`: (tiles, bytes of class weights that blocks of rows beyond a group read again, rate)."""
    high, wide = math.ceil(given["N"] / given["BN"]), math.ceil(given["C"] / given["BC"])
    tiles = Tiles(high * wide, given["BN"], given["BC"], given["D"], given["BD"], given["x"].element_size())
    return tiles, (math.ceil(high / given["group"]) - 1) * size(given["w"]), 1.0


def _of_cosines(given: dict[str, Any]) -> tuple[Tiles, float, float]:
    """The upper half of the int8 tiles."""
    classes = given["C"]
    number = math.ceil(classes / given["ROWS"]) * (math.ceil(classes / given["COLUMNS"]) + 1) / 2
    tiles = Tiles(math.ceil(number), given["ROWS"], given["COLUMNS"], given["D"], given["DEPTH"], 1)
    return tiles, 0.0, 2.0


def _of_parts(given: dict[str, Any]) -> tuple[Tiles, float, float]:
    """Cosines of all tiles of the upper half, from the parts of split rows."""
    side, parts = math.ceil(given["C"] / given["SIZE"]), given.get("PARTS", 1)
    depth, rate = given["D" if "D" in given else "d"], 1.0 if "PARTS" in given else model.RELATIVE[torch.float32]
    number, products = side * (side + 1) // 2, 3 if parts > 1 else 1
    return Tiles(number, given["SIZE"], given["SIZE"], depth, given["DEPTH"], 2 * parts, products), 0.0, rate


def _of_strips(given: dict[str, Any]) -> tuple[Tiles, float, float]:
    """The same of all tiles, and the coefficients, split in two, times the class weights."""
    tiles, again, rate = _of_parts(given)
    columns = given.get("WIDTH", given["SIZE"])
    number = math.ceil(given["C"] / given["SIZE"]) * math.ceil(given["C"] / columns)
    return tiles._replace(number=number, columns=columns, products=6 if tiles.products > 1 else 3), again, rate


Shape = Callable[[dict[str, Any]], tuple[Tiles, float, float]]
TILES: dict[str, Shape] = {
    "statistics_kernel": _of_features,
    "slab_gradient_kernel": _of_features,
    "screen_kernel": _of_cosines,
}
# What works only where the list of pairs has no room for all.
DENSE: dict[str, Shape] = {"sum_kernel": _of_parts, "push_kernel": _of_strips}
# Kernels whose work depends on the pairs: the products that are made for them, if there is room for all in the list.
LISTED = {
    "verify_kernel": lambda given, active: active * given["d"],
    "gather_kernel": lambda given, active: (2 * active + 2 * given["C"]) * given["d"],
    "fill_kernel": lambda given, active: 8 * active,
}


def _listed(name: str, launch: Any, made: Made, pairs: Pairs) -> Kernel:
    given = launch.arguments
    weight = given.get("weight")
    if _over(given, pairs):
        return Kernel(name, 0, 0, Times(total=model.LAUNCH))
    active = pairs.number(_classes(given))
    numbers = LISTED[name](given, active)
    bytes = numbers * (4 if weight is None else weight.element_size())
    threads = given.get("ITEMS", given.get("FEW", 1)) * given["WIDTH"] / (model.LANES * launch.warps)
    (loop,) = sass.reading(made.binary, max(1, int(threads)))
    # of each product one row, of a cosine two; all else that a turn reads is the same for all threads
    rows = (2 if name == "verify_kernel" else 1) * (4 if weight is None else weight.element_size())
    loops = [loop._replace(bytes=int(loop.elements * rows))]
    once = bytes if weight is None else min(bytes, 2 * size(weight))
    return _streamed(name, launch, once, numbers, loops, made.held)


def _classes(given: dict[str, Any]) -> int:
    return given["begins"].shape[0] if "C" not in given else given["C"]


def _over(given: dict[str, Any], pairs: Pairs) -> bool:
    """Whether there are more active pairs than the list has room for."""
    from lt_kernels.reference.gram import PAIRS

    return pairs.number(_classes(given)) > (PAIRS - 1) * _classes(given)
