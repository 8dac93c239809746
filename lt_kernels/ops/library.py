"""The operator library: one place that defines schemas, registers the reference kernels and loads the C++ ones."""

from __future__ import annotations

import importlib
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


def define(room: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `schema`, register its reference kernel, its fake and its vmap rule; return the operator."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _loop(operator), lib=_library)
    _references[name] = (room, reference)
    return operator


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
        return None, "the C++ extension was not built (no compiler when the package was installed)"
    except ImportError as error:
        return None, f"the C++ extension does not load: {error}"


_extension, _reason = _load()


def extension_status() -> tuple[bool, str, str]:
    """(is the C++ extension loaded, the instruction set it chose, why it is not loaded)."""
    return _extension is not None, "" if _extension is None else instruction_set(), _reason


def instruction_set() -> str:
    """The instruction set that the C++ kernels run on: "avx512", "avx2", "generic"; "none" without the extension."""
    return "none" if _extension is None else ("generic", "avx2", "avx512")[_extension.instruction_set()]


_said: list[str] = []


def say_once() -> None:
    """Warn, once a process, that the reference kernels serve because the extension does not."""
    if _extension is None and not _said and not torch.compiler.is_compiling():
        _said.append(_reason)
        warnings.warn(f"lt_kernels: {_reason}; the reference kernels serve on the CPU.", RuntimeWarning, stacklevel=3)


def takes(inputs: int) -> Callable[[type[torch.autograd.Function]], type[torch.autograd.Function]]:
    """State how many inputs the forward of a Function takes.

    Dynamo counts them to tell whether the first is a context, and `apply` would work them out at each call (9 us).
    """
    kind = inspect.Parameter.POSITIONAL_ONLY
    signature = inspect.Signature([inspect.Parameter(f"input{index}", kind) for index in range(inputs)])

    def mark(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
        function.forward.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return mark


def _has(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def kernels_status() -> list[tuple[str, str, str, str]]:
    """For each operator and device: (operator, device, the kernels that serve it, why a faster one does not)."""
    rows = []
    for room in ROOMS:
        names = [name for name, (owner, _) in _references.items() if owner == room]
        compiled = any(_has(name, "CPU") for name in names) or (room == "linear" and _extension is not None)
        serving = f"C++ ({instruction_set()})" if compiled else "reference"
        rows.append((room, "cpu", serving, "" if compiled else _reason))
        rows.append((room, "cuda", *_cuda_status(names)))
    return rows


def _cuda_status(names: list[str]) -> tuple[str, str]:
    if any(_has(name, "CUDA") for name in names):
        return "Triton", ""
    if not torch.cuda.is_available():
        return "reference", "no CUDA device is visible to torch"
    return "reference", "this version has no Triton kernel for the operator"


_forced = [False]


def forced() -> bool:
    """Whether `use_kernels` asks for particular kernels, so that none may be passed by."""
    return _forced[0]


@contextmanager
def use_kernels(which: Literal["reference", "compiled"]) -> Iterator[None]:
    """Within the context every operator runs on its reference kernels, or the compiled ones (an error if not built)."""
    if which not in ("reference", "compiled"):
        raise ValueError(f"which must be 'reference' or 'compiled', got {which!r}")
    if which == "compiled" and _extension is None:
        raise RuntimeError(f"which='compiled': {_reason}")
    before, _forced[0] = _forced[0], True
    override = torch.library.Library(NAMESPACE, "IMPL")  # noqa: TOR901 (destroyed below)
    if which == "reference":
        _register_references(override)
    try:
        yield
    finally:
        _forced[0] = before
        override._destroy()


def _register_references(override: torch.library.Library) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other operators may also be overridden.*")  # that is the purpose
        for name, (_, reference) in _references.items():
            if _has(name, "CPU"):
                override.impl(name, reference, "CPU", allow_override=True)
