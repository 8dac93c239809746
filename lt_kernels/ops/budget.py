"""How much memory the logits of a linear operator may take, and the slabs that follow from it."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_kernels.ops import calling

DEFAULT_BUDGET = 256 * 2**20
# Bytes of one slab of logits. On a CPU it should stay in the cache between two products; on a GPU each product should
# be large enough for the library's full rate, and more than that would only take memory.
SLAB = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
TILE = 256  # a GPU's slab is a multiple of so many classes or rows, so that all tiles of its products are whole
# The least rows and features of a group. With fewer, the additional reads and writes cost as much as the product saves.
GROUP_ROWS = GROUP_FEATURES = 256
# The same on a GPU: a group reads and writes the sum of the weight gradient, in float32, as often as there are groups.
GPU_GROUP_ROWS = 512
_GROUPED = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float64, torch.bfloat16)}
LEAST = 8  # bytes of one float32 logit and of its gradient


class _Budget:
    """The bytes of an entered context; an object, so that two contexts of equal size are distinct."""

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes


class _Entered(threading.local):
    """The contexts that this thread is in, the innermost one last.

    It is not a context variable, because that would cause a graph break under torch.compile.
    """

    def __init__(self) -> None:
        self.budgets: list[_Budget] = []


_entered = _Entered()


class Policy(NamedTuple):
    """How an [N, C] array of logits is divided into blocks, and why.

    keep: whether the logits stay in memory from the forward to the backward pass.
    row_slab, class_slab: the numbers of rows and classes of a block. Logits that are kept are computed in one piece,
        only their gradient in blocks. On a GPU the forward pass holds no logits, and needs no blocks, if the matrix
        units support the features' dtype.
    reason: why, in words.
    """

    keep: bool
    row_slab: int
    class_slab: int
    reason: str


class memory_budget:
    """Within the context the linear operators hold at most `bytes` of logits at a time (default 256 MiB).

    Logits that fit are kept for the backward pass; otherwise they are computed again there, slab by slab. The budget is
    that of the thread that calls the loss, at the time of the call: each thread has its own, and the backward pass, in
    whatever thread it runs, uses the choice of the forward pass. Contexts can be nested, end in any order, be used
    again, and decorate functions.

    Args:
        bytes: a positive integer. One logit and its gradient are held in any case: less than 8 bytes cause a warning.

    Raises:
        ValueError: if `bytes` is not a positive integer.
        TypeError: if what it decorates is a generator or a coroutine, whose body runs after the call.
    """

    def __init__(self, bytes: int) -> None:
        if isinstance(bytes, (bool, np.bool_)) or not hasattr(type(bytes), "__index__"):
            raise ValueError(f"bytes must be a positive integer, got {bytes!r}")
        self.bytes = min(operator.index(bytes), 2**63 - 1)  # more than any machine has
        if self.bytes < 1:
            raise ValueError(f"bytes must be a positive integer, got {bytes!r}")
        if self.bytes < LEAST:
            warnings.warn(
                f"memory_budget({self.bytes}) has no room for one logit and its gradient ({LEAST} bytes in float32): "
                "logits are made one by one, which is very slow, and take more than that; bytes are what counts here",
                stacklevel=2,
            )
        self._open: list[tuple[list[_Budget], _Budget]] = []

    def __enter__(self) -> None:
        budget = _Budget(self.bytes)
        _entered.budgets.append(budget)
        self._open.append((_entered.budgets, budget))

    def __exit__(self, *_: object) -> None:
        # The last one entered in this thread; if another thread closes a generator, the one entered by the generator.
        here = [place for place, (budgets, _) in enumerate(self._open) if budgets is _entered.budgets]
        budgets, budget = self._open.pop(here[-1] if here else -1)
        budgets.remove(budget)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if any(
            kind(function)
            for kind in (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        ):
            raise TypeError(f"memory_budget cannot decorate {function!r}, whose body runs later: use `with` within it")
        bytes = self.bytes

        @functools.wraps(function)
        def within(*inputs: Any, **settings: Any) -> Any:
            with memory_budget(bytes):  # constructed here, because torch.compile supports only what it saw constructed
                return function(*inputs, **settings)

        return within


def current_budget() -> int:
    """The bytes of logits that a linear operator, called in this thread, may hold at a time."""
    return _entered.budgets[-1].bytes if _entered.budgets else DEFAULT_BUDGET


def choose(input: Tensor, classes: int, itemsize: int) -> Policy:
    """Keep the logits if they and one slab of their gradient fit; else class slabs if C > N, else row slabs."""
    rows, budget, device = input.shape[0], current_budget(), input.device.type
    slab = _slab(budget, device)
    logits = rows * classes * itemsize
    keep = logits + min(slab, logits) <= budget
    if classes > rows:
        width = max(1, slab // max(1, rows * itemsize))
        width = min(width, max(2048, slab // (4 * max(1, input.shape[1]))))  # for its slab of the weight gradient
        width = min(_whole(width, device), classes)
        height = max(1, rows if rows * itemsize <= slab else slab // itemsize)
        walk = "C > N: slabs of classes, each part of the weight gradient is written once"
    else:
        height = max(1, min(_whole(max(1, slab // (classes * itemsize)), device), rows))
        width = classes if classes * itemsize <= slab else max(1, slab // itemsize)
        walk = "C <= N: slabs of rows"
    kept = (
        "kept, as they and a slab of their gradient fit"
        if keep
        else "too many to keep: made again in the backward pass"
    )
    return Policy(keep, height, width, f"{kept}; {walk}")


def _slab(budget: int, device: str) -> int:
    """The bytes of a slab."""
    return max(1, min(budget // 2, SLAB.get(device, budget)))


def group_rows(input: Tensor, classes: int) -> int:
    """The rows of a group (`ops.groups`) of features [N, d]; 0 where slabs, or logits that are kept, are faster.

    The logits of a group take no more memory than the budget. On a CPU they take no more than the gradient of the class
    weights either, nor than the cache, unless that would leave fewer than GROUP_ROWS, and leave a slab of their
    gradient; on a GPU that is written over them.
    """
    (rows, features), size = input.shape, max(1, classes) * input.element_size()
    held, device = current_budget(), "cuda" if calling.on_gpu(input) else input.device.type
    if input.dtype not in _GROUPED.get(device, ()) or choose(input, classes, input.element_size()).keep:
        return 0
    if device == "cuda":
        fit = _whole(min(rows, held // size), device)
        return math.ceil(rows / math.ceil(rows / fit)) if fit >= min(rows, GPU_GROUP_ROWS) else 0
    fit = min(rows, features, (held - _slab(held, "cpu")) // size)  # what a slab of their gradient leaves
    if features < GROUP_FEATURES or fit < GROUP_ROWS:
        return 0
    cached = SLAB["cpu"] // size
    return math.ceil(rows / math.ceil(rows / (min(fit, cached) if cached >= GROUP_ROWS else fit)))


def _whole(size: int, device: str) -> int:
    """The size of a slab, on a GPU a whole number of tiles."""
    return size - size % TILE if device == "cuda" and size > TILE else size
