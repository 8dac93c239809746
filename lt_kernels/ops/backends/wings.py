"""`use_kernels`: chooses by name which kernels the operators use, for tests and comparisons."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from lt_kernels.ops import calling
from lt_kernels.ops.backends import library

WINGS = ("reference", "compiled", "triton")


class _Wing:
    """An entered context, and its thread."""

    def __init__(self, which: str) -> None:
        self.which, self.thread = which, threading.get_ident()


_entered: list[_Wing] = []  # the innermost one last
_override: list[torch.library.Library] = []
_lock = threading.RLock()


@contextmanager
def use_kernels(which: Literal["reference", "compiled", "triton"]) -> Iterator[None]:
    """Within the context every operator uses its reference kernels, or the compiled ones (an error if not built).

    "triton" runs the GPU kernels on CPU tensors in Triton's interpreter (an error unless TRITON_INTERPRET=1 is set),
    which is slow and meant for tests. Contexts can be nested; the innermost one applies. It applies to the whole
    process, because torch has one table of kernels: while a thread is within one, no other thread can enter one.

    Raises:
        ValueError: if `which` is none of the three.
        RuntimeError: if these kernels are not available, or another thread is within such a context.
    """
    if which not in WINGS:
        raise ValueError(f"which must be 'reference', 'compiled' or 'triton', got {which!r}")
    if which == "compiled" and not library.built():
        raise RuntimeError(f"which='compiled': {library.extension_status()[2]}")
    if which == "triton" and not library.interpreted():
        raise RuntimeError("which='triton': triton is not installed, or TRITON_INTERPRET=1 is not set")
    wing = _Wing(which)
    _enter(wing)
    try:
        yield
    finally:
        with _lock:
            _entered.remove(wing)
            _set(_entered[-1].which if _entered else "")


def _enter(wing: _Wing) -> None:
    with _lock:
        if _entered and _entered[-1].thread != wing.thread:
            within = _entered[-1].which
            raise RuntimeError(
                f"use_kernels({wing.which!r}) counts for the whole process, and another thread is within "
                f"use_kernels({within!r}): enter it once, around both threads"
            )
        _entered.append(wing)
        _set(wing.which)


def _set(which: str) -> None:
    """Make the operators use the kernels `which`; "" restores the usual choice."""
    while _override:
        _override.pop()._destroy()
    calling.force(which)
    if not which:
        return
    _override.append(torch.library.Library(library.NAMESPACE, "IMPL"))  # noqa: TOR901 (destroyed above)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other operators may also be overridden.*")  # that is the purpose
        for name, key, kernel in library.kernels_of(which):
            _override[-1].impl(name, kernel, key, allow_override=library.has(name, key))
