"""The C++ extension: whether it is loaded, the instruction set it runs on, and the warning where it is not loaded."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import torch

REQUIRED, CPU = "LT_KERNELS_REQUIRE_EXTENSION", "LT_KERNELS_CPU"
INSTRUCTION_SETS = ("generic", "avx2", "avx512")


def _flag(name: str) -> bool:
    """Whether an environment variable is 1; it may be 1, 0 or empty."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{name} must be 0 or 1, got {value!r}")
    return value == "1"


def _load() -> tuple[Any, str]:
    """Import the extension: (module, "") or (None, the reason why the reference kernels are used)."""
    try:
        return importlib.import_module("lt_kernels._C"), ""
    except ModuleNotFoundError:
        why = "no torch (as in an isolated build), no compiler, or LT_KERNELS_PURE=1; "
        why += "`pip install --no-build-isolation` where torch, setuptools and a C++ compiler are builds it"
        return None, f"the C++ extension was not built: {why}"
    except ImportError as error:
        return None, f"the C++ extension does not load: {error}"


def _demanded(loaded: Any, reason: str) -> Any:
    """The extension, with the instruction set that the environment asks for; an error if it does not have that."""
    wanted = os.environ.get(CPU, "")
    if wanted not in ("", *INSTRUCTION_SETS):
        raise ValueError(f"{CPU} must be one of {', '.join(INSTRUCTION_SETS)}, got {wanted!r}")
    required = _flag(REQUIRED)
    if loaded is None:
        if required or wanted:
            raise ImportError(f"{REQUIRED if required else CPU} asks for C++ kernels, but {reason}")
        return None
    if wanted and wanted not in machine_sets(loaded):
        has = ", ".join(machine_sets(loaded))
        raise ValueError(f"{CPU} must be one of {has}, which this machine and this build have, got {wanted!r}")
    if wanted:
        loaded.choose_instruction_set(INSTRUCTION_SETS.index(wanted))
    return loaded


def machine_sets(loaded: Any) -> tuple[str, ...]:
    """The instruction sets that this machine and this build have."""
    return INSTRUCTION_SETS[: loaded.best_instruction_set() + 1]


module, reason = _load()
module = _demanded(module, reason)


def extension_status() -> tuple[bool, str, str]:
    """(whether the C++ extension is loaded, the instruction set that it uses, why it is not loaded)."""
    return module is not None, "" if module is None else instruction_set(), reason


def built() -> bool:
    """Whether the C++ extension is loaded."""
    return module is not None


def instruction_set() -> str:
    """The instruction set that the C++ kernels use: "avx512", "avx2", "generic"; "none" without the extension."""
    return "none" if module is None else INSTRUCTION_SETS[module.instruction_set()]


def instruction_sets() -> str:
    """Which instruction sets there are, and what chose among them, in words."""
    if module is None:
        return "none without the C++ extension"
    chosen = f"as {CPU} asks" if os.environ.get(CPU) else f"the best one; {CPU} chooses another"
    return f"{instruction_set()} of {', '.join(machine_sets(module))}: {chosen}"


def intel() -> bool:
    """Whether the processor is made by Intel; False without the C++ extension."""
    return module is not None and bool(module.intel())


_said: list[str] = []


def say_once() -> None:
    """Warn, once per process, that the reference kernels are used because the extension is not loaded."""
    if module is None and not _said and not torch.compiler.is_compiling():
        _said.append(reason)
        warnings.warn(f"lt_kernels: {reason}; the reference kernels serve on the CPU.", RuntimeWarning, stacklevel=3)
