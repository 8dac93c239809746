"""The check of an angle, which other packages take in degrees."""

from __future__ import annotations

import math
from typing import Any

from lt_kernels.core import checks


def angle(name: str, value: Any) -> float:
    """An angle in radians, in [0, pi]; the error for what may be degrees says it in radians."""
    try:
        return checks.number(name, value, 0.0, math.pi)
    except ValueError as error:
        if not math.pi < float(value) <= 180:
            raise
        radians = f"{float(value):g} degrees are {math.radians(value):.6g} radians"
        raise ValueError(f"{name} must be in radians, >= 0 and <= {math.pi}, got {value!r} ({radians})") from error
