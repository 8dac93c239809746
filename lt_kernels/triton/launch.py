"""Launching kernels, or recording the launches, so that the variants that a GPU runs can be compiled without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Whether Triton's interpreter runs the kernels, on CPU tensors. Triton reads this variable when it is first imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0", "false")


class Launch(NamedTuple):
    """One kernel call: the grid, every argument by name (constants too), and the compiler's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int


_record: list[list[Launch]] = []


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the context nothing is launched; the launches are listed instead. Tensors may be on the meta device."""
    _record.append([])
    try:
        yield _record[-1]
    finally:
        _record.pop()


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], *, warps: int = 4, stages: int = 2) -> None:
    """Run `kernel` on the device of its tensors; an empty grid runs nothing."""
    if _record:
        _record[-1].append(Launch(kernel, grid, arguments, warps, stages))
    elif 0 not in grid:
        kernel[grid](**arguments, num_warps=warps, num_stages=stages)


def blocks(size: int, width: int) -> int:
    """How many blocks of `width` cover `size`."""
    return -(-size // width)


def power_of_two(size: int, least: int = 1, most: int = 2**20) -> int:
    """The least power of two that is at least `size`, within [least, most]."""
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


def processors(like: Tensor) -> int:
    """How many multiprocessors the tensor's device has; 132, as an H100 or H200 has, if it is not a GPU."""
    if like.device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(like.device).multi_processor_count
