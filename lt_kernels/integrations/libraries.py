"""The libraries of other people, imported only when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any


def library(name: str, extra: str = "integrations") -> Any:
    """Import and return the module `name`.

    Errors: ImportError naming the package that is missing and the extra of lt-kernels that has it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed; install the extra: pip install 'lt-kernels[{extra}]'", name=error.name
        ) from error
