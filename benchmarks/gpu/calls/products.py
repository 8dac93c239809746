"""Calls of the operators that multiply features and class weights, and of those on columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.calls.call import BF16, FP16, FP32, FP64, SIZES, Call, meta, plans, sums, tables

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


def of_linear() -> Iterator[Call]:
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


def of_gram() -> Iterator[Call]:
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


def of_columns() -> Iterator[Call]:
    for name, dtype, option in plans(("cifar", "inat", "vocab", "odd"), {"row offset": None}, ("inat", "vocab", "odd")):
        rows, classes, _ = SIZES[name]
        given = {"logits": meta(rows, classes, dtype=dtype), "target": meta(rows, dtype=torch.int64)}
        given |= {"row_offset": meta(rows, dtype=sums(dtype)) if option else None}
        forward = Call("columns", "columns_forward", name, dtype, option)
        lse, own = forward.run(**given)
        backward = Call("columns", "columns_backward", name, dtype, option)
        backward.run(**given, lse=lse, d_lse=lse, d_own=own)
        yield from (forward, backward)
