"""The training harness: recipes, methods by name, resumable runs, comparisons of them, and what they have learnt.

The trainer is imported only when a run starts. `fit` trains from Python, and the command line is the other door.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

TRAINER = ("lightning", "rich", "yaml", "tensorboard")  # what a run imports


class MissingTrainer(RuntimeError):
    """A package of the extra [train] is not installed."""


def need(*modules: str, extra: str = "train", what: str = "training") -> None:
    """Say which extra is missing if one of its modules is not installed; imports none of them."""
    for module in modules:
        try:
            installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            installed = False
        if not installed:
            raise MissingTrainer(_missing(module, extra, what))


def require(module: str) -> Any:
    """Import a module of the extra [train], or say which extra is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingTrainer(_missing(error.name or module)) from error


def _missing(module: str, extra: str = "train", what: str = "training") -> str:
    return f"{what} needs {module}, which is not installed; install the extra: pip install 'lt-kernels[{extra}]'"


def __getattr__(name: str) -> Any:
    """`fit`, which stands on what is in this file."""
    if name == "fit":
        return importlib.import_module("lt_kernels.train.fitting").fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
