"""How much memory the logits of a linear operator may take, and the slabs that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

DEFAULT_BUDGET = 256 * 2**20
SLAB = {"cpu": 4 * 2**20}  # bytes of one slab of logits: on a CPU it should stay in the cache between two products
_budget = [DEFAULT_BUDGET]  # of the process: a context variable would break the graph under torch.compile


class Policy(NamedTuple):
    """How an [N, C] array of logits is walked, and why."""

    keep: bool
    row_slab: int
    class_slab: int
    reason: str


@contextmanager
def memory_budget(bytes: int) -> Iterator[None]:
    """Within the context the linear operators hold at most `bytes` of logits at a time (default 256 MiB).

    Logits that fit are kept for the backward pass; else they are made again there, a slab at a time.

    Raises:
        ValueError: if `bytes` is not a positive integer.
    """
    if not isinstance(bytes, int) or isinstance(bytes, bool) or bytes < 1:
        raise ValueError(f"bytes must be a positive integer, got {bytes!r}")
    before, _budget[0] = _budget[0], bytes
    try:
        yield
    finally:
        _budget[0] = before


def current_budget() -> int:
    """The bytes of logits that a linear operator may hold at a time."""
    return _budget[0]


def choose(input: Tensor, classes: int, itemsize: int) -> Policy:
    """Keep the logits if they and one slab of their gradient fit; else class slabs if C > N, else row slabs."""
    rows, budget = input.shape[0], current_budget()
    slab = max(1, min(budget // 2, SLAB.get(input.device.type, budget)))
    logits = rows * classes * itemsize
    keep = logits + min(slab, logits) <= budget
    if classes > rows:
        width = max(1, slab // max(1, rows * itemsize))
        width = min(width, max(2048, slab // (4 * max(1, input.shape[1]))))  # so is its slab of the weight gradient
        reason = "C > N: slabs of classes, each slab of the weight gradient is written once"
        height = max(1, rows if rows * itemsize <= slab else slab // itemsize)
        return Policy(keep, height, min(width, classes), reason)
    height = max(1, slab // (classes * itemsize))
    width = classes if classes * itemsize <= slab else max(1, slab // itemsize)
    return Policy(keep, max(1, min(height, rows)), width, "C <= N: slabs of rows")
