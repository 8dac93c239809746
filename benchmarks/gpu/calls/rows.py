"""Calls of the operators on given logits, and of the margins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.calls.call import FP32, FP64, SIZES, Call, meta, plans, sums, tables


def of_rows() -> Iterator[Call]:
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
    "z-loss, weights of rows": {"z_loss": 1e-4, "sample_weight": True, "reduction": 1},
    "smoothing by class": {"class_smoothing": True, "reduction": 1},
}


def _losses() -> Iterator[Call]:
    names = (*tables(1, 1, FP32), *LOSSES)
    for name, dtype, option in plans(
        ("imagenet-lt", "inat", "vocab", "odd"), dict.fromkeys(names), ("imagenet-lt", "inat"), ("offset [1, C]",)
    ):
        rows, classes, _ = SIZES[name]
        given = {"logits": meta(rows, classes, dtype=dtype), "target": meta(rows, dtype=torch.int64), "reduction": 1}
        given |= tables(rows, classes, dtype).get(option, {}) | settings(option, rows, classes, sums(dtype))
        if given.get("class_smoothing") is not None:
            given["mean_weight"] = meta(1, classes, dtype=sums(dtype))
        if given.get("mean_weight") is not None:
            given |= {"total": meta(given["mean_weight"].shape[0], dtype=sums(dtype)), "smoothing": 0.1}
        forward = Call("rows", "rows_loss", name, dtype, option)
        loss, saved = forward.run(**given)
        yield from _at_once(forward, given)
        given = {key: given.get(key) for key in ("logits", "target", "offset", "offset_row", "mean_weight")}
        backward = Call("rows", "rows_loss_backward", name, dtype, option)
        backward.run(**given, saved=saved, grad=loss, want_offset=given["offset"] is not None)
        yield from (forward, backward)


def _at_once(forward: Call, given: dict[str, Any]) -> Iterator[Call]:
    """Loss and gradient together, also of logits with scales as of a cosine; and the gradient times another one."""
    rows, classes = given["logits"].shape
    kind = sums(forward.dtype)
    scales = {"row_scale": meta(rows, dtype=kind), "column_scale": meta(classes, dtype=kind)}
    for title, more in (("", {}), ("scales", scales)) if forward.options in ("", "ArcFace") else (("", {}),):
        words = " ".join(filter(None, (forward.options, title)))
        once = Call("rows", "rows_loss_gradient", forward.name, forward.dtype, words)
        _, gradient = once.run(**given, **more)
        yield once
    times = Call("rows", "times_grad", forward.name, forward.dtype, forward.options)
    times.run(**given, gradient=gradient, grad=meta(dtype=kind))
    yield times


def settings(option: str, rows: int, classes: int, kind: torch.dtype) -> dict[str, Any]:
    """The settings of a loss, with a table [C], or [N] for the rows, where they say True."""
    found = LOSSES.get(option, {})
    named = dict.fromkeys(("weight", "class_margin", "class_smoothing"), classes) | {"sample_weight": rows}
    return {key: meta(named[key], dtype=kind) if key in named else value for key, value in found.items()}


def of_margins() -> Iterator[Call]:
    for option in ("", *LOSSES, "offset and smoothing"):
        for rows, kind in ((256, FP32), (8_192, FP32), (256, FP64)):
            vector = meta(rows, dtype=kind)
            given = dict.fromkeys(("rest", "top", "own", "rival"), vector) | {"target": meta(rows, dtype=torch.int64)}
            given |= settings(option, rows, 8_142, kind) | ({"norm": vector} if option.startswith("SphereFace") else {})
            given.pop("reduction", None)
            if option.endswith(("smoothing", "smoothing by class")):
                given |= dict.fromkeys(("own_offset", "mean", "total", "share"), vector)
            call = Call("margins", "margins", f"N={rows}", kind, option)
            call.run(**given)
            yield call
