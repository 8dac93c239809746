"""Calls of every GPU operator at the shapes that count, on tensors without memory: what is launched is written down.

Every room's option is there with both values, one at a time, and all dtypes; so each kernel is seen as often as the
compiler would make it anew.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
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
DEFAULTS |= {"kind": 0, "margin": 0.0, "instance": 0.0, "guard": False, "gamma": 0.0, "smoothing": 0.0, "reduction": 0}
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

        schema = getattr(torch.ops.lt_kernels, self.operator).default._schema
        self.given = {
            argument.name: given.get(argument.name, DEFAULTS.get(argument.name)) for argument in schema.arguments
        }
        function = getattr(importlib.import_module(f"lt_kernels.triton.{self.room}"), self.operator)
        with recorded() as self.launches, self.library, patch("torch.autocast", nullcontext_of):
            found = function(*self.given.values())
        self.found = (found,) if isinstance(found, Tensor) else tuple(found)
        return self.found


def nullcontext_of(*_: Any, **__: Any) -> nullcontext[None]:
    """In place of autocast, which does not know tensors without memory."""
    return nullcontext()


def calls(rooms: Iterable[str], generation: int = 9) -> Iterator[Call]:
    """Every call of these rooms, as on a GPU of that generation where it matters (9: compute capability 9.0)."""
    with patch("lt_kernels.triton.linear.GENERATION", generation):
        for room in rooms:
            yield from ROOMS[room]()


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


def _rows() -> Iterator[Call]:
    yield from _statistics()
    yield from _losses()


def _statistics() -> Iterator[Call]:
    names = (*tables(1, 1, FP32), "no target", "two targets", "scales", "scaled")
    for name, dtype, option in plans(
        ("imagenet-lt", "inat", "vocab", "odd"), dict.fromkeys(names), ("imagenet-lt", "inat"), ("offset [1, C]",)
    ):
        rows, classes, _ = SIZES[name]
        kind, slots = sums(dtype), {"no target": 0, "two targets": 2}.get(option, 1)
        given = {"logits": meta(rows, classes, dtype=dtype), "target": meta(rows, slots, dtype=torch.int64)}
        given |= {"classes": classes, **tables(rows, classes, dtype).get(option, {})}
        given |= {"scale": 30.0} if option in ("scaled", "scales") else {}
        if option == "scales":
            given |= {"row_scale": meta(rows, dtype=kind), "column_scale": meta(classes, dtype=kind)}
        forward = Call("rows", "rows_forward", name, dtype, option)
        rest, own, _, mean, top, _ = forward.run(**given)
        slopes = {"rest": rest, "top": top, "d_rest": rest, "d_own": own, "d_mean": mean if mean.numel() else None}
        slopes |= {"d_own_offset": own, "want_offset": True} if "offset" in given else {}
        backward = Call("rows", "rows_backward", name, dtype, option)
        backward.run(**given, **slopes)
        yield from (forward, backward)


LOSSES: dict[str, dict[str, Any]] = {
    "weights, focal, mean": {"weight": True, "gamma": 2.0, "reduction": 1},
    "sum": {"reduction": 2},
    "mean over the batch": {"reduction": 3},
    "CosFace": {"kind": 1, "margin": 0.35, "scale": 30.0, "reduction": 1},
    "LDAM": {"kind": 1, "class_margin": True, "scale": 30.0, "reduction": 1},
    "ArcFace": {"kind": 2, "margin": 0.5, "guard": True, "scale": 30.0, "reduction": 1},
    "DBM": {"kind": 2, "class_margin": True, "instance": 1.0, "scale": 30.0, "reduction": 1},
    "DBM of all": {"kind": 4, "class_margin": True, "instance": 1.0, "scale": 30.0, "reduction": 1},
    "SphereFace": {"kind": 3, "margin": 4.0, "reduction": 1},
    "SphereFace annealed": {"kind": 3, "margin": 4.0, "class_margin": True, "reduction": 1},
    "smoothing by class": {"class_smoothing": True, "reduction": 1},
}


def _losses() -> Iterator[Call]:
    names = (*tables(1, 1, FP32), *LOSSES)
    for name, dtype, option in plans(
        ("imagenet-lt", "inat", "vocab", "odd"), dict.fromkeys(names), ("imagenet-lt", "inat"), ("offset [1, C]",)
    ):
        rows, classes, _ = SIZES[name]
        given = {"logits": meta(rows, classes, dtype=dtype), "target": meta(rows, dtype=torch.int64), "reduction": 1}
        given |= tables(rows, classes, dtype).get(option, {}) | settings(option, classes, sums(dtype))
        if given.get("class_smoothing") is not None:
            given["mean_weight"] = meta(1, classes, dtype=sums(dtype))
        if given.get("mean_weight") is not None:
            given |= {"total": meta(given["mean_weight"].shape[0], dtype=sums(dtype)), "smoothing": 0.1}
        forward = Call("rows", "rows_loss", name, dtype, option)
        loss, saved = forward.run(**given)
        given = {key: given.get(key) for key in ("logits", "target", "offset", "offset_row", "mean_weight")}
        backward = Call("rows", "rows_loss_backward", name, dtype, option)
        backward.run(**given, saved=saved, grad=loss, want_offset=given["offset"] is not None)
        yield from (forward, backward)


def settings(option: str, classes: int, kind: torch.dtype) -> dict[str, Any]:
    """The settings of a loss, with a table [C] where they say True."""
    found = LOSSES.get(option, {})
    named = ("weight", "class_margin", "class_smoothing")
    return {key: meta(classes, dtype=kind) if key in named else value for key, value in found.items()}


def _margins() -> Iterator[Call]:
    for option in ("", *LOSSES, "offset and smoothing"):
        for rows, kind in ((256, FP32), (8_192, FP32), (256, FP64)):
            vector = meta(rows, dtype=kind)
            given = dict.fromkeys(("rest", "top", "own", "rival"), vector) | {"target": meta(rows, dtype=torch.int64)}
            given |= settings(option, 8_142, kind) | ({"norm": vector} if option.startswith("SphereFace") else {})
            given.pop("reduction", None)
            if option.endswith(("smoothing", "smoothing by class")):
                given |= dict.fromkeys(("own_offset", "mean", "total", "share"), vector)
            call = Call("margins", "margins", f"N={rows}", kind, option)
            call.run(**given)
            yield call


PRODUCTS: dict[str, dict[str, Any]] = {
    "bias": {"bias": True},
    "norms of the classes": {"normalize": 1},
    "cosine": {"normalize": 2, "scale": 30.0},
    "offset held": {},
    "bias and offset held": {"bias": True},
    "cosine and offset held": {"normalize": 2, "scale": 30.0},
    "two targets": {"slots": 2},
    "logits made again": {},
    "input alone": {},
    "TensorFloat-32": {},
}


@contextmanager
def precision(option: str) -> Iterator[None]:
    """Let float32 products be those of TensorFloat-32 where the option says so."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if option == "TensorFloat-32" else before
    try:
        yield
    finally:
        settings.fp32_precision = before


# The options of the goals' own calls: cosine losses, an offset for each class that gets no gradient, and a bias.
OF_GOALS = ("bias", "cosine", "offset held", "bias and offset held", "cosine and offset held")


def _linear() -> Iterator[Call]:
    names = dict.fromkeys((*tables(1, 1, FP32), *PRODUCTS))
    for name, dtype, option in plans(("inat", "vocab", "faces"), names, ("imagenet-lt", "inat"), OF_GOALS):
        if dtype == FP32 and name in ("vocab", "faces"):
            continue  # the library's products alone, by the thousand
        (rows, classes, depth), extra = SIZES[name], dict(PRODUCTS.get(option, {}))
        given = {"input": meta(rows, depth, dtype=dtype), "weight": meta(classes, depth, dtype=dtype)}
        given |= {"target": meta(rows, extra.pop("slots", 1), dtype=torch.int64), "classes": classes}
        given |= tables(rows, classes, dtype).get("offset [1, C]" if "held" in option else option, {}) | extra
        given |= {"bias": meta(classes, dtype=dtype)} if "bias" in given else {}
        given |= slabs(given["input"], classes, again=bool(option))
        forward, backward = (Call("linear", f"linear_{way}", name, dtype, option) for way in ("forward", "backward"))
        with precision(option):
            rest, own, _, mean, top, _, kept, row_scale, column_scale = forward.run(**given)
            given |= {"kept": kept, "row_scale": row_scale, "column_scale": column_scale, "d_own": own}
            given |= {"rest": rest, "top": top, "d_rest": rest, "d_mean": mean if mean.numel() else None}
            learnt = "offset" in given and "held" not in option
            given |= {"d_own_offset": own if learnt else None}
            backward.run(**given, wants=[True, option != "input alone", "bias" in given, learnt])
        yield from (forward, backward)


def slabs(input: Tensor, classes: int, again: bool) -> dict[str, Any]:
    """What the public functions ask for within the default budget, or if not even one array of logits fitted."""
    from lt_kernels.ops import budget

    policy = budget.choose(input, classes, input.element_size())
    keep = policy.keep and not again
    return {"keep": keep, "row_slab": policy.row_slab, "class_slab": classes if keep else policy.class_slab}


def _gram() -> Iterator[Call]:
    options = {
        "": {},
        "norms held": {"project": False},
        "raw": {"project": False, "raw": True},
        "threshold 0": {"threshold": 0.0},
        "threshold 1": {"threshold": 1.0},
    }
    for name in ("lwr-inat", "lwr-100k", "odd"):
        for dtype in (BF16, FP16, FP32, FP64) if name == "lwr-inat" else (BF16, FP32):
            for option, given in options.items() if name == "lwr-inat" else [("", {})]:
                weight = meta(*SIZES[name][1:], dtype=dtype)
                forward = Call("gram", "gram_forward", name, dtype, option)
                total, scale, first, second, value, count, dense = forward.run(weight=weight, **given)
                found = {"scale": scale, "total": total, "first": first, "second": second, "value": value}
                backward = Call("gram", "gram_backward", name, dtype, option)
                backward.run(weight=weight, **given, **found, count=count, dense=dense, grad=total)
                yield from (forward, backward)


def _columns() -> Iterator[Call]:
    for name, dtype, option in plans(("cifar", "inat", "vocab", "odd"), {"row offset": None}, ("inat", "vocab", "odd")):
        rows, classes, _ = SIZES[name]
        given = {"logits": meta(rows, classes, dtype=dtype), "target": meta(rows, dtype=torch.int64)}
        given |= {"row_offset": meta(rows, dtype=sums(dtype)) if option else None}
        forward = Call("columns", "columns_forward", name, dtype, option)
        lse, own = forward.run(**given)
        backward = Call("columns", "columns_backward", name, dtype, option)
        backward.run(**given, lse=lse, d_lse=lse, d_own=own)
        yield from (forward, backward)


ROOMS = {"rows": _rows, "margins": _margins, "linear": _linear, "gram": _gram, "columns": _columns}
