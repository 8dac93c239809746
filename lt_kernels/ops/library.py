"""The operator library: one place that defines schemas and registers the kernels of Python and Triton."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lt_kernels.ops import extension
from lt_kernels.ops.door import Door, one_device
from lt_kernels.ops.extension import built, extension_status, instruction_set, intel, say_once

__all__ = ["built", "extension_status", "instruction_set", "intel", "say_once"]
NAMESPACE = "lt_kernels"
ROOMS = ("rows", "margins", "linear", "gram", "columns")
_library = torch.library.Library(NAMESPACE, "DEF")  # noqa: TOR901 (lives as long as the process)
_doors: dict[str, Door] = {}
_references: dict[str, tuple[str, Callable[..., Any]]] = {}
# The operators that have a kernel for GPUs: the function of that name in lt_kernels/triton/<room>.py.
_GPU = (
    *("rows_forward", "rows_backward", "rows_loss", "rows_loss_backward", "margins"),
    *("linear_forward", "linear_backward", "gram_forward", "gram_backward", "columns_forward", "columns_backward"),
)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


_has_triton = _importable("triton")


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
    if _has_triton and name in _GPU:
        _library.impl(name, _triton_kernel(room, name), "CUDA")
    return operator


def serve(name: str, kernel: Callable[..., Any]) -> None:
    """Let a kernel in Python serve an operator on the CPU; a loop around C++ ones, it pays where these are."""
    if built():
        _library.impl(name, _doors[name].guarding(kernel), "CPU")


def _on_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*inputs: Any) -> Any:
        one_device(inputs)
        return fake(*inputs)

    return checked


def _triton_kernel(room: str, name: str) -> Callable[..., Any]:
    """The GPU kernel of an operator; triton, which takes a while, is imported when the first one is called."""

    def kernel(*args: Any) -> Any:
        _doors[name].check(args)
        function = getattr(importlib.import_module(f"lt_kernels.triton.{room}"), name)
        if args[0].device.type != "cuda":  # Triton's interpreter, on CPU tensors
            return function(*args)
        with torch.cuda.device(args[0].device):
            return function(*args)

    return kernel


def _loop(operator: Any) -> Callable[..., Any]:
    """A vmap rule that runs the operator once per example: right for every operator; sizes under vmap are small."""

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


def _none(*_: Any) -> None:
    """What a function of the extension gives without it."""


# Past the dispatcher (csrc/plain.h, csrc/few.h).
plain_forward = getattr(extension.module, "plain_forward", _none)
plain_backward = getattr(extension.module, "plain_backward", _none)
linear_forward = getattr(extension.module, "linear_forward", _none)
linear_backward = getattr(extension.module, "linear_backward", _none)
few_cross_entropy = getattr(extension.module, "few_cross_entropy", _none)
few_linear_cross_entropy = getattr(extension.module, "few_linear_cross_entropy", _none)
lade_forward = getattr(extension.module, "lade_forward", _none)
lade_backward = getattr(extension.module, "lade_backward", _none)
few_lade = getattr(extension.module, "few_lade", _none)
cosine_forward = getattr(extension.module, "cosine_forward", _none)
cosine_backward = getattr(extension.module, "cosine_backward", _none)
few_cosine_cross_entropy = getattr(extension.module, "few_cosine_cross_entropy", _none)
_allow_few = getattr(extension.module, "allow_few", _none)


def large_pages(made: Tensor) -> Tensor:
    """A new CPU tensor that nothing was written to yet, on large pages where the system has them (csrc/pages.h)."""
    if built() and made.nbytes > 2**22:
        extension.module.large_pages(made.data_ptr(), made.nbytes)
    return made


def turn(made: Tensor, out: Tensor) -> None:
    """out [C, d] = made [d, C] turned; both float32 and their rows dense, those of `out` may lie apart."""
    extension.module.turn(made.data_ptr(), *made.shape, out.data_ptr(), out.stride(0))


def takes(inputs: int) -> Callable[[type[torch.autograd.Function]], type[torch.autograd.Function]]:
    """State how many inputs the forward of a Function takes, and make its direct form for `apply`.

    Dynamo counts them to tell whether the first is a context, and `apply` would work them out at each call (9 us).
    """
    kind = inspect.Parameter.POSITIONAL_ONLY
    signature = inspect.Signature([inspect.Parameter(f"input{index}", kind) for index in range(inputs)])

    def mark(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
        function.forward.__signature__ = signature  # type: ignore[attr-defined]
        function.direct = _direct(function)  # type: ignore[attr-defined]
        return function

    return mark


def _direct(function: Any) -> type[torch.autograd.Function]:
    """The same Function in the older form, without `setup_context`, whose calls take 12 us less."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), members)


def watched() -> bool:
    """Whether torch.func, a compiler or a dispatch mode looks on, which need the general form of a Function."""
    seen = torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0
    return torch.compiler.is_compiling() or seen or torch._C._is_tracing()


def transient() -> bool:
    """Whether a tensor made now may not outlive the context it is made in: torch.func, a mode, inference."""
    return watched() or torch.is_inference_mode_enabled()


def apply(function: Any, *inputs: Any) -> Any:
    """`function.apply(*inputs)`; directly where nobody needs the general form."""
    return function.apply(*inputs) if watched() else function.direct.apply(*inputs)


def has(name: str, key: str) -> bool:
    """Whether an operator has a kernel of its own for a dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def kernels_status() -> list[tuple[str, str, str, str]]:
    """For each operator and device: (operator, device, the kernels that serve it, why a faster one does not)."""
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


_forced = [""]


def forced() -> str:
    """The kernels that `use_kernels` asks for, so that none may be passed by; "" without it."""
    return _forced[0]


def force(which: str) -> None:
    """Take note of the kernels that `use_kernels` asks for."""
    _forced[0] = which
    _allow_few(not which)


def interpreted() -> bool:
    """Whether Triton is there and runs its kernels by its interpreter."""
    return _has_triton and importlib.import_module("lt_kernels.triton.launch").INTERPRETED


def kernels_of(which: str) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(operator, dispatch key, kernel) of all that must be registered anew so that one wing serves."""
    for name, (room, reference) in _references.items():
        if which == "triton" and name in _GPU:
            yield name, "CPU", _triton_kernel(room, name)
        for key in ("CPU", "CUDA"):
            if which == "reference" and has(name, key):
                yield name, key, reference
