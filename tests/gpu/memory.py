"""Every address that interpreted kernels read and write: for tests of bounds, and of how often a tensor is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor


class Touched:
    """How often one launch read and wrote each number of each tensor that it was given, by the argument's name."""

    def __init__(self, kernel: str, arguments: dict[str, Any]) -> None:
        self.kernel = kernel
        given = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        self.tensors = dict(sorted(given.items(), key=lambda item: _span(item[1])))  # a part before the whole
        self.reads = {name: np.zeros(_span(tensor), np.int64) for name, tensor in self.tensors.items()}
        self.writes = {name: np.zeros(_span(tensor), np.int64) for name, tensor in self.tensors.items()}

    def count(self, counts: dict[str, np.ndarray], pointers: np.ndarray, mask: np.ndarray) -> None:
        """Count the addresses where the mask is; each has to be in a tensor."""
        left = np.asarray(pointers)[np.asarray(mask, bool)].astype(np.int64).ravel()
        for name, tensor in self.tensors.items():
            place, rest = np.divmod(left - tensor.data_ptr(), tensor.element_size())
            inside = (place >= 0) & (place < len(counts[name])) & (rest == 0)
            np.add.at(counts[name], place[inside], 1)
            left = left[~inside]
        assert left.size == 0, f"{self.kernel} touches {left.size} addresses that are in none of its tensors"

    def of(self, name: str, counts: dict[str, np.ndarray]) -> Tensor:
        """The counts in the shape of the tensor."""
        tensor = self.tensors[name]
        return torch.from_numpy(counts[name]).as_strided(tensor.shape, tensor.stride())


class Watch:
    """Stands where the interpreter's memory is, and counts before it passes on."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        self.launched: list[Touched] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def load(self, pointers: np.ndarray, mask: np.ndarray, *rest: Any) -> Any:
        self.launched[-1].count(self.launched[-1].reads, pointers, mask)
        return self.plain.load(pointers, mask, *rest)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> Any:
        self.launched[-1].count(self.launched[-1].writes, pointers, mask)
        return self.plain.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray, *rest: Any) -> Any:
        self.launched[-1].count(self.launched[-1].writes, pointers, mask)
        return self.plain.atomic_rmw(operation, pointers, value, mask, *rest)


def _span(tensor: Tensor) -> int:
    """Numbers from the first to the last of a tensor."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def watched() -> Iterator[list[Touched]]:
    """Within the context every launch is listed, with what it touches; one outside of its tensors is an error."""
    from triton.runtime import interpreter

    from lt_kernels.triton import columns, gram, linear, margins, rows  # noqa: F401 (patched below)
    from lt_kernels.triton import launch as launching

    plain, watch = launching.launch, Watch(interpreter._interpreter)

    def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: Any) -> None:
        watch.launched.append(Touched(kernel.fn.__name__, arguments))
        plain(kernel, grid, arguments, **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(interpreter, "_interpreter", watch))
        for name, module in list(sys.modules.items()):
            if name.startswith("lt_kernels.triton.") and getattr(module, "launch", None) is plain:
                stack.enter_context(patch.object(module, "launch", launch))
        yield watch.launched
