"""The operator library: defines schemas, and registers the kernels that are written in Python and Triton."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import private
from lt_kernels.ops import calling
from lt_kernels.ops.backends import extension
from lt_kernels.ops.backends.door import Door, one_device
from lt_kernels.ops.backends.extension import built, extension_status, instruction_set, intel, say_once

__all__ = ["built", "extension_status", "instruction_set", "intel", "say_once"]
NAMESPACE = "lt_kernels"
ROOMS = ("rows", "margins", "linear", "gram", "columns")
_library = torch.library.Library(NAMESPACE, "DEF")  # noqa: TOR901 (lives as long as the process)
_doors: dict[str, Door] = {}
_references: dict[str, tuple[str, Callable[..., Any]]] = {}
# The operators that have a kernel for GPUs: the function of that name in lt_kernels/triton/<room>.py.
_GPU = (
    *("rows_forward", "rows_backward", "rows_loss", "rows_loss_gradient", "rows_loss_backward", "margins"),
    *("linear_forward", "linear_backward", "gram_forward", "gram_backward", "columns_forward", "columns_backward"),
)


def define(room: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `schema`, register its reference kernel, its fake and its vmap rule; return the operator."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    _doors[name] = Door(room, operator)
    reference = _doors[name].guarding(reference)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", _on_one_device(fake), lib=_library)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _loop(operator), lib=_library)
    _references[name] = (room, reference)
    if calling.HAS_TRITON and name in _GPU:
        _library.impl(name, _triton_kernel(room, name), "CUDA")
    return operator


def serve(name: str, kernel: Callable[..., Any]) -> None:
    """Register a CPU kernel that is written in Python, if the C++ kernels that it calls are built."""
    if built():
        _library.impl(name, _doors[name].guarding(kernel), "CPU")


def _on_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*inputs: Any) -> Any:
        one_device(inputs)
        return fake(*inputs)

    return checked


def _triton_kernel(room: str, name: str) -> Callable[..., Any]:
    """The GPU kernel of an operator; triton is slow to import, so it is imported at the first call."""

    def kernel(*args: Any) -> Any:
        _doors[name].check(args)
        function = getattr(importlib.import_module(f"lt_kernels.triton.{room}"), name)
        if args[0].device.type != "cuda":  # Triton's interpreter, on CPU tensors
            return function(*args)
        with torch.cuda.device(args[0].device):
            return function(*args)

    return kernel


def _loop(operator: Any) -> Callable[..., Any]:
    """A vmap rule that calls the operator once per example, which is correct for every operator."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def example(index: int) -> Any:
            picked = (
                arg if dim is None or not isinstance(arg, Tensor) else arg.select(dim, index)
                for arg, dim in zip(args, in_dims, strict=True)
            )
            return operator(*picked)

        results = [example(index) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def large_pages(made: Tensor) -> Tensor:
    """The same new CPU tensor, not yet written to, with large pages where the system has them (csrc/pages.h)."""
    if built() and made.nbytes > 2**22:
        extension.module.large_pages(made.data_ptr(), made.nbytes)
    return made


def transpose(made: Tensor, out: Tensor) -> None:
    """out [C, d] = made [d, C] transposed; both float32; rows are contiguous, those of `out` may be strided."""
    extension.module.transpose(made.data_ptr(), *made.shape, out.data_ptr(), out.stride(0))


def project(gradient: Tensor, rows: Tensor, scale: Tensor) -> None:
    """`reference.linear.project_rows` for contiguous CPU tensors of one dtype, float32 or float64."""
    addresses = (one.data_ptr() for one in (gradient, rows, scale))
    extension.module.project(*addresses, *gradient.shape, gradient.dtype == torch.float64)


def has(name: str, key: str) -> bool:
    """Whether an operator has a kernel of its own for a dispatch key."""
    return private.has_kernel(f"{NAMESPACE}::{name}", key)


def kernels_status() -> list[tuple[str, str, str, str]]:
    """For each room and device: (room, device, the kernels that it uses, why not faster ones)."""
    rows = []
    for room in ROOMS:
        names = [name for name, (owner, _) in _references.items() if owner == room]
        compiled = any(has(name, "CPU") for name in names)
        serving = f"C++ ({instruction_set()})" if compiled else "reference"
        rows.append((room, "cpu", serving, "" if compiled else extension.reason))
        rows.append((room, "cuda", *_cuda_status(names)))
    return rows


def _cuda_status(names: list[str]) -> tuple[str, str]:
    seen = "" if torch.cuda.is_available() else "no CUDA device is visible to torch"
    if any(has(name, "CUDA") for name in names):
        return "Triton", seen
    return "reference", "; ".join(part for part in ("triton is not installed", seen) if part)


def interpreted() -> bool:
    """Whether Triton is installed and runs kernels in its interpreter."""
    return calling.HAS_TRITON and importlib.import_module("lt_kernels.triton.launch").INTERPRETED


def kernels_of(which: str) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(operator, dispatch key, kernel) of all kernels that `use_kernels(which)` registers."""
    for name, (room, reference) in _references.items():
        if which == "triton" and name in _GPU:
            yield name, "CPU", _triton_kernel(room, name)
        for key in ("CPU", "CUDA"):
            if which == "reference" and has(name, key):
                yield name, key, reference
