"""Calls of every GPU operator at the shapes that count, on tensors without memory: what is launched is written down.

Every room's option is there with both values, one at a time, and all dtypes; so each kernel is seen as often as the
compiler would make it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from unittest.mock import patch

from benchmarks.gpu.calls.call import Call, nullcontext_of
from benchmarks.gpu.calls.products import of_columns, of_gram, of_linear
from benchmarks.gpu.calls.rows import of_margins, of_rows

__all__ = ["ROOMS", "Call", "calls", "nullcontext_of"]

ROOMS = {"rows": of_rows, "margins": of_margins, "linear": of_linear, "gram": of_gram, "columns": of_columns}


def calls(rooms: Iterable[str], generation: int = 9) -> Iterator[Call]:
    """Every call of these rooms, as on a GPU of that generation where it matters (9: compute capability 9.0)."""
    with patch("lt_kernels.triton.launch.GENERATION", generation):
        for room in rooms:
            yield from ROOMS[room]()
