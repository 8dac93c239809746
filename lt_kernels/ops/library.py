"""The operator library: one place that defines schemas, registers the reference kernels and loads the C++ ones."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

NAMESPACE = "lt_kernels"
ROOMS = ("rows", "margins", "linear", "gram", "columns")
_library = torch.library.Library(NAMESPACE, "DEF")  # noqa: TOR901 (lives as long as the process)
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
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _loop(operator), lib=_library)
    _references[name] = (room, reference)
    if _has_triton and name in _GPU:
        _library.impl(name, _triton_kernel(room, name), "CUDA")
    return operator


def _triton_kernel(room: str, name: str) -> Callable[..., Any]:
    """The GPU kernel of an operator; triton, which takes a while, is imported when the first one is called."""

    def kernel(*args: Any) -> Any:
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


def _load() -> tuple[Any, str]:
    """Import the extension: (module, "") or (None, the reason why the reference kernels serve)."""
    try:
        return importlib.import_module("lt_kernels._C"), ""
    except ModuleNotFoundError:
        why = "no torch, no compiler or an error of its when the package was installed (pip install -v shows it)"
        return None, f"the C++ extension was not built: {why}"
    except ImportError as error:
        return None, f"the C++ extension does not load: {error}"


_extension, _reason = _load()


def _none(*_: Any) -> None:
    """What a function of the extension gives without it."""


# Past the dispatcher (csrc/plain.h, csrc/few.h).
plain_forward = getattr(_extension, "plain_forward", _none)
plain_backward = getattr(_extension, "plain_backward", _none)
linear_forward = getattr(_extension, "linear_forward", _none)
linear_backward = getattr(_extension, "linear_backward", _none)
few_cross_entropy = getattr(_extension, "few_cross_entropy", _none)
few_linear_cross_entropy = getattr(_extension, "few_linear_cross_entropy", _none)
lade_forward = getattr(_extension, "lade_forward", _none)
lade_backward = getattr(_extension, "lade_backward", _none)
few_lade = getattr(_extension, "few_lade", _none)
cosine_forward = getattr(_extension, "cosine_forward", _none)
cosine_backward = getattr(_extension, "cosine_backward", _none)
few_cosine_cross_entropy = getattr(_extension, "few_cosine_cross_entropy", _none)
_allow_few = getattr(_extension, "allow_few", _none)


def extension_status() -> tuple[bool, str, str]:
    """(is the C++ extension loaded, the instruction set it chose, why it is not loaded)."""
    return _extension is not None, "" if _extension is None else instruction_set(), _reason


def built() -> bool:
    """Whether the C++ extension is loaded."""
    return _extension is not None


def instruction_set() -> str:
    """The instruction set that the C++ kernels run on: "avx512", "avx2", "generic"; "none" without the extension."""
    return "none" if _extension is None else ("generic", "avx2", "avx512")[_extension.instruction_set()]


def intel() -> bool:
    """Whether the processor is Intel's, as far as the C++ extension can tell."""
    return _extension is not None and bool(_extension.intel())


def large_pages(made: Tensor) -> Tensor:
    """A new CPU tensor that nothing was written to yet, on large pages where the system has them (csrc/pages.h)."""
    if _extension is not None and made.nbytes > 2**22:
        _extension.large_pages(made.data_ptr(), made.nbytes)
    return made


def turn(made: Tensor, out: Tensor) -> None:
    """out [C, d] = made [d, C] turned; both float32 and their rows dense, those of `out` may lie apart."""
    _extension.turn(made.data_ptr(), *made.shape, out.data_ptr(), out.stride(0))


_said: list[str] = []


def say_once() -> None:
    """Warn, once a process, that the reference kernels serve because the extension does not."""
    if _extension is None and not _said and not torch.compiler.is_compiling():
        _said.append(_reason)
        warnings.warn(f"lt_kernels: {_reason}; the reference kernels serve on the CPU.", RuntimeWarning, stacklevel=3)


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
    return torch.compiler.is_compiling() or seen


def transient() -> bool:
    """Whether a tensor made now may not outlive the context it is made in: torch.func, a mode, inference."""
    return watched() or torch.is_inference_mode_enabled()


def batched(grad: Tensor) -> bool:
    """Whether it stands for many gradients at once, by torch.func or `is_grads_batched`: it then has no numbers."""
    return "Batched" in str(torch._C._dispatch_keys(grad))  # the key of the older kind has no name in Python


def apply(function: Any, *inputs: Any) -> Any:
    """`function.apply(*inputs)`; directly where nobody needs the general form."""
    return function.apply(*inputs) if watched() else function.direct.apply(*inputs)


def _has(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def kernels_status() -> list[tuple[str, str, str, str]]:
    """For each operator and device: (operator, device, the kernels that serve it, why a faster one does not)."""
    rows = []
    for room in ROOMS:
        names = [name for name, (owner, _) in _references.items() if owner == room]
        compiled = any(_has(name, "CPU") for name in names)
        serving = f"C++ ({instruction_set()})" if compiled else "reference"
        rows.append((room, "cpu", serving, "" if compiled else _reason))
        rows.append((room, "cuda", *_cuda_status(names)))
    return rows


def _cuda_status(names: list[str]) -> tuple[str, str]:
    seen = "" if torch.cuda.is_available() else "no CUDA device is visible to torch"
    if any(_has(name, "CUDA") for name in names):
        return "Triton", seen
    return "reference", "; ".join(part for part in ("triton is not installed", seen) if part)


_forced = [""]


def forced() -> str:
    """The kernels that `use_kernels` asks for, so that none may be passed by; "" without it."""
    return _forced[0]


@contextmanager
def use_kernels(which: Literal["reference", "compiled", "triton"]) -> Iterator[None]:
    """Within the context every operator runs on its reference kernels, or the compiled ones (an error if not built).

    "triton" runs the GPU kernels on CPU tensors, by Triton's interpreter (an error unless TRITON_INTERPRET=1 is set):
    slow, and meant for tests.
    """
    if which not in ("reference", "compiled", "triton"):
        raise ValueError(f"which must be 'reference', 'compiled' or 'triton', got {which!r}")
    if which == "compiled" and _extension is None:
        raise RuntimeError(f"which='compiled': {_reason}")
    if which == "triton" and not (_has_triton and importlib.import_module("lt_kernels.triton.launch").INTERPRETED):
        raise RuntimeError("which='triton': triton is not installed, or TRITON_INTERPRET=1 is not set")
    before, _forced[0] = _forced[0], which
    _allow_few(False)
    override = torch.library.Library(NAMESPACE, "IMPL")  # noqa: TOR901 (destroyed below)
    _override(override, which)
    try:
        yield
    finally:
        _forced[0] = before
        _allow_few(not before)
        override._destroy()


def _override(override: torch.library.Library, which: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other operators may also be overridden.*")  # that is the purpose
        for name, (room, reference) in _references.items():
            if which == "triton" and name in _GPU:
                override.impl(name, _triton_kernel(room, name), "CPU", allow_override=_has(name, "CPU"))
            for key in ("CPU", "CUDA"):
                if which == "reference" and _has(name, key):
                    override.impl(name, reference, key, allow_override=True)
