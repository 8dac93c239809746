"""Launching kernels, or recording the launches, so that the variants that a GPU runs can be compiled without one.

Triton finds the compiled form of a kernel anew at each launch, from the kind of every argument, which takes 10 to 20 us
of the host's time. Here it is kept under the arguments themselves, and a launch that repeats is one look into a table;
where all but the tensors is known before (`Prepared`), only these are looked at.
"""

from __future__ import annotations

import functools
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


GENERATION = 9  # of the GPU (9: Hopper) that is assumed where there is none
_record: list[list[Launch]] = []
_made: dict[tuple[Any, ...], Any] = {}  # the compiled kernels of earlier launches
_TENSORS = (Tensor, torch.nn.Parameter)  # `isinstance` would take longer than all else
MOST = 4096  # launches that are kept; sizes that never repeat would otherwise fill the memory


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the context nothing is launched; the launches are listed instead. Tensors may be on the meta device."""
    _record.append([])
    try:
        yield _record[-1]
    finally:
        _record.pop()


def recording() -> bool:
    """Whether launches are only written down, so that tensors need no memory."""
    return bool(_record)


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], *, warps: int = 4, stages: int = 2) -> None:
    """Run `kernel` on the current device, that of its tensors; an empty grid runs nothing."""
    if _record:
        _record[-1].append(Launch(kernel, grid, arguments, warps, stages))
    elif 0 in grid:
        return
    elif INTERPRETED:
        kernel[grid](**arguments, num_warps=warps, num_stages=stages)
    else:
        _launch(kernel, grid, arguments, warps, stages)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int) -> None:
    """Run the kernel's compiled form, which the first launch of its kind makes.

    Of a tensor it depends on the dtype and on whether 16 divides the address; the key has every other argument itself.
    """
    values = [arguments[name] for name in kernel.arg_names]
    kinds = [(value.dtype, value.data_ptr() % 16) if type(value) in _TENSORS else value for value in values]
    # Kernels live as long as the process, so their addresses tell them apart; their own hash would take 2 us.
    key = (id(kernel), torch.cuda.current_device(), warps, stages, *kinds)
    compiled = _made.get(key)
    if compiled is None:
        if len(_made) >= MOST:
            _made.clear()
        _made[key] = kernel[grid](**arguments, num_warps=warps, num_stages=stages)
    else:
        compiled[(*grid, 1, 1)[:3]](*values)


class Prepared:
    """A launch of which only the tensors differ from call to call.

    Args:
        fixed: the other arguments by name, constants too.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], fixed: dict[str, Any], *, warps: int = 4, stages: int = 2
    ) -> None:
        self.kernel, self.grid, self.fixed, self.options = kernel, grid, fixed, {"warps": warps, "stages": stages}
        self.values = [fixed.get(name) for name in kernel.arg_names]
        self.place = {name: index for index, name in enumerate(kernel.arg_names)}
        self.made: dict[tuple[Any, ...], Any] = {}

    def __call__(self, **tensors: Tensor | None) -> None:
        """Run it with these tensors, on their device, the current one."""
        if _record or INTERPRETED:
            launch(self.kernel, self.grid, {**self.fixed, **tensors}, **self.options)
            return
        values, kinds = self.values.copy(), [torch.cuda.current_device()]
        for name, tensor in tensors.items():
            values[self.place[name]] = tensor
            kinds += (None,) if tensor is None else (tensor.dtype, tensor.data_ptr() % 16)
        run = self.made.get(key := tuple(kinds))
        if run is None:
            options = {f"num_{name}": value for name, value in self.options.items()}
            compiled = self.kernel[self.grid](**self.fixed, **tensors, **options)
            self.made[key] = compiled[(*self.grid, 1, 1)[:3]]
        else:
            run(*values)


def blocks(size: int, width: int) -> int:
    """How many blocks of `width` cover `size`."""
    return -(-size // width)


def power_of_two(size: int, least: int = 1, most: int = 2**20) -> int:
    """The least power of two that is at least `size`, within [least, most]."""
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


@functools.lru_cache
def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def generation(like: Tensor) -> int:
    """The generation of the tensor's GPU: the first part of its compute capability."""
    return _generation(like.device) if like.is_cuda else GENERATION


def processors(like: Tensor) -> int:
    """How many multiprocessors the tensor's device has; 132, as an H100 or H200 has, if it is not a GPU."""
    if like.device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(like.device).multi_processor_count
