"""What calls of GPU operators move and multiply, counted from what they launch, against the least that they must."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tables.markdown import markdown

COPY, PRODUCTS = 4.3e12, 790e12  # of an H200: bytes and bf16 operations a second, as measured on one
SHOWN = ("inat", "odd", "vocab", "faces", "lwr-inat", "lwr-100k")
# Operations of the kernels that multiply matrices. Of the cosines only one half is made.
FLOPS = {
    "statistics_kernel": lambda a: 2 * a["N"] * a["C"] * a["D"],
    "slab_gradient_kernel": lambda a: 2 * a["N"] * a["C"] * a["D"],
    "screen_kernel": lambda a: a["C"] * a["C"] * a["D"],
}
# How many pairs are active depends on the weights: what is read and written for them is not counted. Kernels that have
# something to do only where the list of pairs has no room left are not counted either.
LISTS = {"first", "second", "value", "item", "neighbour", "cosine", "begins", "degree", "found", "count"}
SELDOM = {"sum_kernel", "push_kernel", "verify_kernel"}


class Operation(NamedTuple):
    """A kernel of the library's; of a matrix product M x K by K x N the sizes too."""

    name: str
    bytes: int
    product: tuple[int, int, int] | None = None
    dtype: torch.dtype | None = None

    @property
    def flops(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * math.prod(self.product) if self.product else 0


class Library(TorchDispatchMode):
    """Writes down the library's own kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    @property
    def bytes(self) -> int:
        """What all of them read and write."""
        return sum(one.bytes for one in self.operations)

    @property
    def flops(self) -> int:
        """The operations of all products."""
        return sum(one.flops for one in self.operations)

    @property
    def launches(self) -> int:
        """How many kernels there are."""
        return len(self.operations)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count what it reads and writes, if it does: no views, no new memory."""
        # Torch 2.11 takes this one's dtype for its factor on the meta device.
        broken = func is torch.ops.aten.addmm.dtype_out and args[0].is_meta
        found = kwargs["out"] if broken else func(*args, **(kwargs or {}))
        returned = func._schema.returns
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in returned)
        if view or "empty" in func.__name__:
            return found
        name, product, dtype = func.__name__.split(".")[0], None, None
        read = args[1:] if name in ("copy_", "fill_") else () if name == "zero_" else args
        given = [*_tensors(read), *_tensors({key: value for key, value in (kwargs or {}).items() if key != "out"})]
        moved = sum(map(size, [*{id(one): one for one in given}.values(), *_tensors(found)]))
        if name in ("mm", "matmul", "addmm", "addmm_"):
            left, right = list(_tensors(args))[-2:]
            product, dtype = (left.shape[0], left.shape[1], right.shape[1]), left.dtype
        self.operations.append(Operation(name, moved, product, dtype))
        return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def size(tensor: Tensor) -> int:
    """Bytes; a dimension that only repeats counts once."""
    return tensor.element_size() * math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride or n == 0)


def moved(call: Any) -> tuple[int, int, int]:
    """(launches, bytes, operations) of a call: every tensor of a launch is read or written once."""
    bytes, flops = call.library.bytes, call.library.flops
    for launch in call.launches:
        name, given = launch.kernel.fn.__name__, launch.arguments
        counted = () if name in SELDOM else given.keys() - LISTS
        bytes += sum(size(given[key]) for key in counted if isinstance(given[key], Tensor))
        flops += FLOPS.get(name, lambda _: 0)(given)
    return len(call.launches) + call.library.launches, bytes, flops


def least(call: Any) -> tuple[int, int]:
    """(bytes, operations): inputs are read once and outputs written once; each product is made once."""
    given = [value for name, value in call.given.items() if isinstance(value, Tensor) and name not in {*LISTS, "kept"}]
    made = call.found[:2] if call.operator == "gram_forward" else call.found[:4]
    bytes = sum(map(size, {id(value): value for value in (*given, *made)}.values()))
    if call.room == "gram":
        classes, features = call.given["weight"].shape
        return bytes, classes * classes * features if call.operator == "gram_forward" else 0
    if call.room != "linear":
        return bytes, 0
    rows, classes = call.given["input"].shape[0], call.given["weight"].shape[0]
    return bytes, 2 * rows * classes * call.given["input"].shape[1] * (1 if call.operator == "linear_forward" else 2)


AGAIN = ("gradient_again", "times_grad")  # which do nothing where the incoming gradient is 1
HEADER = ("call", "launches", "MB", "least", "ratio", "GFLOP", "least", "ratio", "least time, ms")


def table(calls: Iterable[Any]) -> str:
    """A row for each plain call in bfloat16 (and float32 for logit-weight repulsion) at the larger shapes."""
    plain = (call for call in calls if not call.options and call.room != "margins" and call.operator not in AGAIN)
    shown = [call for call in plain if call.name in SHOWN and (call.room, call.name) != ("gram", "odd")]
    wanted = {"gram": (torch.bfloat16, torch.float32)}
    rows = [line(call) for call in shown if call.dtype in wanted.get(call.room, (torch.bfloat16,))]
    return markdown(HEADER, rows)


def line(call: Any) -> Sequence[str]:
    """The row of one call."""
    (launches, bytes, flops), (fewest, must) = moved(call), least(call)
    time = "" if call.room == "gram" else f"{max(fewest / COPY, must / PRODUCTS) * 1e3:.3g}"  # its products are of int8
    numbers = [f"{bytes / 1e6:,.1f}", f"{fewest / 1e6:,.1f}", f"{bytes / fewest:.2f}"]
    numbers += [f"{flops / 1e9:,.0f}", f"{must / 1e9:,.0f}", f"{flops / must:.2f}"] if must else ["", "", ""]
    return [f"`{call.operator}` {sizes(call)}", str(launches), *numbers, time]


def sizes(call: Any) -> str:
    """N=256 C=8142 d=2048 bfloat16"""
    given = [call.given[name].shape for name in ("logits", "input", "weight") if call.given.get(name) is not None]
    numbers = (given[0][0], *given[-1]) if call.room == "linear" else given[0]
    letters = {"linear": "NCd", "gram": "Cd"}.get(call.room, "NC")
    named = (f"{letter}={number}" for letter, number in zip(letters, numbers))
    return " ".join((*named, str(call.dtype).removeprefix("torch.")))
