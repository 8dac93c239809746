"""One call of a GPU operator on tensors without memory, and what calls are made of."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import CUDA_SHAPES, SHAPES
from benchmarks.gpu.traffic import Library

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SIZES = SHAPES | CUDA_SHAPES | {"odd": (8_192, 50_257, 768), "lwr-100k": (0, 100_000, 512)}
# What a schema asks for and a call does not say; an optional tensor is None.
DEFAULTS: dict[str, Any] = {"scale": 1.0, "start": 0, "ignore_index": -100, "want_offset": False}
DEFAULTS |= {"kind": 0, "margin": 0.0, "instance": 0.0, "guard": False, "gamma": 0.0, "smoothing": 0.0, "z_loss": 0.0}
DEFAULTS |= {"reduction": 0, "softcap": 0.0}
DEFAULTS |= {"normalize": 0, "keep": False, "threshold": 0.4, "project": True, "raw": False}


@dataclass
class Call:
    """One call of an operator: where, with what, and the kernels that it launched."""

    room: str
    operator: str
    name: str  # of the shape
    dtype: torch.dtype
    options: str  # "" for a plain call
    launches: list[Any] = field(default_factory=list)
    library: Library = field(default_factory=Library)
    given: dict[str, Any] = field(default_factory=dict)
    found: tuple[Tensor, ...] = ()

    @property
    def title(self) -> str:
        """rows_forward inat bfloat16 offset [1, C]"""
        return " ".join(filter(None, (self.operator, self.name, str(self.dtype).removeprefix("torch."), self.options)))

    def run(self, **given: Any) -> tuple[Tensor, ...]:
        """Call the room's function with the arguments of its schema, and keep what it would launch."""
        from lt_kernels.triton.launch import recorded

        function = getattr(importlib.import_module(f"lt_kernels.triton.{self.room}"), self.operator)
        operator = getattr(torch.ops.lt_kernels, self.operator, None)
        names = inspect.signature(function).parameters
        names = names if operator is None else [argument.name for argument in operator.default._schema.arguments]
        self.given = {name: given.get(name, DEFAULTS.get(name)) for name in names}
        with recorded() as self.launches, self.library, patch("torch.autocast", nullcontext_of):
            found = function(*self.given.values())
        self.found = (found,) if isinstance(found, Tensor) else tuple(found or ())
        return self.found


def nullcontext_of(*_: Any, **__: Any) -> nullcontext[None]:
    """In place of autocast, which does not know tensors without memory."""
    return nullcontext()


def meta(*sizes: int, dtype: torch.dtype = FP32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(sizes, dtype=dtype, device="meta")


def sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic."""
    return FP64 if dtype == FP64 else FP32


def plans(
    shapes: tuple[str, ...], options: dict[str, Any], least: tuple[str, ...], goals: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any, str]]:
    """(shape, dtype, option): every shape without options, every option at the shapes `least`; and in half precision
    every shape with the options that the goals have.
    """
    halves = ((name, dtype, option) for name in shapes for option in ("", *goals) for dtype in (BF16, FP16))
    yield from dict.fromkeys((*_plans(shapes, options, least), *halves))


def _plans(shapes: tuple[str, ...], options: dict[str, Any], least: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    for name in shapes:
        for dtype in (BF16, FP32):
            yield name, dtype, ""
    for name in least:
        yield name, FP64, ""
        yield name, FP16, ""
        for option in options:
            yield name, BF16, option
    for option in options:
        yield least[-1], FP32, option


def tables(rows: int, classes: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Offsets as they come: one line, a line for each row, lines that the rows pick; and shares of label smoothing."""
    kind = sums(dtype)
    one, each, picked = (meta(lines, classes, dtype=kind) for lines in (1, rows, 64))
    line = meta(rows, dtype=torch.int64)
    return {
        "offset [1, C]": {"offset": one},
        "offset [N, C]": {"offset": each},
        "offset [R, C]": {"offset": picked, "offset_row": line},
        "smoothing": {"mean_weight": one},
        "offset, smoothing [R, C]": {"offset": picked, "offset_row": line, "mean_weight": picked},
    }
