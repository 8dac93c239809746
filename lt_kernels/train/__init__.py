"""The training harness: recipes, methods by name, resumable runs, comparisons of them, and what they have learnt.

The command line alone imports it, and it imports the trainer only when a run starts.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


class MissingTrainer(RuntimeError):
    """A package of the extra [train] is not installed."""


def need(*modules: str) -> None:
    """Say which extra is missing if one of its modules is not installed; imports none of them."""
    for module in modules:
        try:
            installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            installed = False
        if not installed:
            raise MissingTrainer(_missing(module))


def require(module: str) -> Any:
    """Import a module of the extra [train], or say which extra is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingTrainer(_missing(error.name or module)) from error


def _missing(module: str) -> str:
    return f"training needs {module}, which is not installed; install the extra: pip install 'lt-kernels[train]'"
