"""The training harness: configs, the methods by name, resumable runs and their comparison.

Nothing outside this folder imports it, and it imports the trainer only when a run starts.
"""

from __future__ import annotations

import importlib
from typing import Any


class MissingTrainer(RuntimeError):
    """A package of the extra [train] is not installed."""


def require(module: str) -> Any:
    """Import a module of the extra [train], or say which extra is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingTrainer(
            f"training needs {missing}, which is not installed; install the extra: pip install 'lt_kernels[train]'"
        ) from error
