"""A right call of every operator, and what is made wrong of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

N, C, D, K = 6, 5, 4, 7  # rows, classes, features, keys
NAMESPACE = torch.ops.lt_kernels


def numbers(*sizes: int) -> Tensor:
    return torch.rand(*sizes) + 0.1


def indices(size: int, most: int) -> Tensor:
    return torch.arange(size) % most


PAIRS = 48 * C  # places of a list of pairs
# Right arguments by their names; by operator and name where a name has several meanings.
TENSORS = {
    "logits": numbers(N, C),
    "input": numbers(N, D),
    "weight": numbers(C),
    "bias": numbers(C),
    "row_scale": numbers(N),
    "column_scale": numbers(C),
    "offset": numbers(C + 3, C),
    "offset_row": indices(N, C + 3),
    "mean_weight": numbers(C + 3, C),
    "d_own": numbers(N, 1),
    "d_own_offset": numbers(N, 1),
    "row_offset": numbers(N),
    "class_counts": torch.arange(1.0, C + 1, dtype=torch.float64),
    "lse": numbers(C),
    "d_lse": numbers(C),
    "first": (indices(PAIRS, C - 1)).int(),
    "second": (indices(PAIRS, C - 1) + 1).int(),
    "value": numbers(PAIRS),
    "count": torch.tensor([7]),
    "dense": torch.zeros(1, 1, dtype=torch.bool),
    "product": numbers(3, 4),
    "unit": torch.ones(C, D, dtype=torch.int8),
    "query": numbers(N, D),
    "key": numbers(K, D),
    "query_class": indices(N, C),
    "key_class": indices(K, C),
    "left_out": indices(N, K),
    "kept": numbers(N, C),
}
BY_CLASS = ("class_margin", "class_smoothing", "scale", "slope", "step", "error", "shift")
BY_ROW = ("rest", "top", "own", "rival", "own_offset", "norm", "mean", "share", "d_rest", "d_mean", "grad")
BY_ROW = (*BY_ROW, "sample_weight")
TENSORS |= {name: numbers(C) for name in BY_CLASS} | {name: numbers(N) for name in BY_ROW}
NUMBERS: dict[str, Any] = {"scale": 1.0, "start": 0, "classes": C, "ignore_index": -100, "kind": 0, "margin": 0.1}
NUMBERS |= {
    "instance": 0.0,
    "guard": False,
    "gamma": 0.0,
    "smoothing": 0.1,
    "z_loss": 0.1,
    "softcap": 2.0,
    "reduction": 1,
    "want_offset": True,
}
NUMBERS |= {
    "normalize": 2,
    "row_slab": 2,
    "class_slab": 3,
    "keep": False,
    "threshold": 0.4,
    "project": True,
    "raw": False,
}
NUMBERS |= {"lam": 0.1, "by_class": True, "every_class": True, "factor": 1.0, "want": True, "raw": False}
NUMBERS |= {"row": 1, "column": 1, "capacity": 4, "wide": False, "side": 2, "density": 3, "begin": 1, "end": 4}
# Numbers that no operator may take, by their names.
WRONG: dict[str, tuple[int, ...]] = {
    "start": (-1, 2, 2**62, -(2**62)),
    "classes": (-1, C - 1),
    "kind": (-1, 5, 2**40),
    "reduction": (-1, 4, 2**40),
    "normalize": (-1, 3),
    "row_slab": (0, -1),
    "class_slab": (0, -1),
    "row": (-1, C - 2, 2**62, -(2**63)),
    "column": (-1, C - 3, 2**62, -(2**63)),
    "capacity": (-1, -(2**40)),
    "side": (0, -1),
    "density": (0, -1),
    "begin": (-1, 5),
    "end": (-1, 0, 7),
}
# Values of indices that are no place of what they point at. A GPU is not asked for them.
PLACES: dict[str, tuple[int, ...]] = {
    "target": (-1, C, 2**40, -(2**63)),
    "offset_row": (-1, C + 3, 2**40),
    "first": (-1, C, 2**31 - 1),
    "second": (-1, C, -(2**31)),
    "count": (-1, PAIRS + 1, 2**40),
    "left_out": (K, 2**40),
}
LOOKED_AT = {
    "target": "rows_ linear_ margins columns_ lade_",
    "offset_row": "rows_ linear_",
    "first": "gram_pairs gram_listed",
    "second": "gram_pairs gram_listed",
    "count": "gram_pairs",
    "left_out": "keys_",
}


class Call(NamedTuple):
    """Arguments of an operator, of which `name` is wrong in some way (or none)."""

    name: str
    how: str
    arguments: tuple[Any, ...]


def operators() -> list[str]:
    from lt_kernels.ops.backends.library import _references

    return sorted(_references)


def _special(operator: str, name: str) -> Any:
    """What an argument is where it is not what its name says elsewhere; None where it is."""
    room = operator.partition("_")[0]
    flat = operator in ("rows_loss", "rows_loss_gradient", "rows_loss_backward", "margins") or room in (
        "columns",
        "lade",
    )
    found = {
        "target": indices(N, C - 1) if flat else indices(N, C)[:, None],
        "total": numbers(C) if room == "gram" else numbers(N) if operator == "margins" else numbers(C + 3),
        "saved": numbers(6, N),
        "wants": [True, True] if room == "keys" else [True] * 4,
        "normalize": NUMBERS["normalize"],
    }
    if room in ("linear", "gram"):
        found["weight"] = numbers(C, D)
    if room == "linear" and operator.endswith("backward"):
        found |= {"row_slab": N, "class_slab": C}
    if room == "gram":
        found |= {"own": numbers(C), "grad": numbers(C)}
    if room == "keys":
        found |= {"offset": numbers(K), "d_own": numbers(N)}
    if room in ("columns", "lade"):
        found["d_own"] = numbers(N)
    return found.get(name)


def schema(operator: str) -> dict[str, str]:
    """The names of an operator's arguments, and their types."""
    arguments = getattr(NAMESPACE, operator).default._schema.arguments
    return {argument.name: str(argument.type) for argument in arguments}


@functools.cache
def right(operator: str) -> tuple[Any, ...]:
    """Arguments that an operator takes."""
    found = []
    if operator == "gram_backward":  # each wing has a list of pairs of its own
        weight = numbers(C, D)
        total, *saved = NAMESPACE.gram_forward(weight, 0.4, False)
        return weight, 0.4, True, saved[0], total, *saved[1:], numbers(C), False
    for name, kind in schema(operator).items():
        special = _special(operator, name)
        if special is not None:
            found.append(special)
        elif "Tensor" in kind:
            found.append(TENSORS[name])
        else:
            found.append(NUMBERS[name])
    return tuple(found)


def _worse(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of another size, rank, dtype or device."""
    yield "empty", value.new_empty(0)
    yield "of no size", value[:0]
    yield "a row fewer", value[:-1]
    yield "a row more", torch.cat((value, value[:1]))
    yield "of one row", value[:1]
    yield "of a rank more", value[None]
    yield "of a rank fewer", value.reshape(-1)[0]
    if value.ndim == 2:
        yield "a column fewer", value[:, :-1]
        yield "a column more", torch.cat((value, value[:, :1]), 1)
        yield "flat", value.reshape(-1)
    yield "of another dtype", value.short()
    yield "complex", value.to(torch.complex64)
    yield "in half precision", value.half()
    yield "in double precision", value.double()
    yield "of int64", value.long()
    yield "on another device", value.to("meta")


def wrong(operator: str) -> Iterator[Call]:
    """Calls that an operator must refuse, whatever the kernels."""
    arguments, types = right(operator), schema(operator)
    for place, (name, kind) in enumerate(types.items()):
        if "Tensor" in kind:
            worse = [(how, one) for how, one in _worse(arguments[place]) if not _allowed(operator, name, one, place)]
        else:
            worse = [(f"of {value}", value) for value in WRONG.get(name, ())]
        for how, value in worse:
            yield Call(name, how, (*arguments[:place], value, *arguments[place + 1 :]))


def misplaced(operator: str) -> Iterator[Call]:
    """Calls whose indices point outside."""
    arguments = right(operator)
    for place, name in enumerate(schema(operator)):
        if not any(part in operator for part in LOOKED_AT.get(name, "").split()):
            continue
        for value in PLACES[name]:
            worse = arguments[place].clone()
            worse.view(-1)[0] = value
            yield Call(name, f"with {value}", (*arguments[:place], worse, *arguments[place + 1 :]))


def _allowed(operator: str, name: str, value: Tensor, place: int) -> bool:
    """Whether an operator takes such a tensor as well: another size that nothing else depends on, or another dtype."""
    arguments = right(operator)
    usual, tensors = arguments[place], [one for one in arguments if isinstance(one, Tensor)]
    if value.device.type == "meta":
        return len(tensors) == 1
    like = value.dtype == usual.dtype and value.ndim == usual.ndim
    if like and value.shape == usual.shape:
        return True
    if value.dtype != usual.dtype:
        if value.shape != usual.shape or not value.is_floating_point():
            return False
        half = place == 0 and value.dtype == torch.half and name not in ("rest", "product", "query")
        half = half or (operator == "lade_loss" and name == "logits")  # whose counts are float64 in any case
        return half or len(tensors) == 1 or (operator.startswith("linear") and name in ("weight", "bias"))
    one_gradient = operator == "rows_loss_backward" and name == "grad" and value.ndim == 0
    none_kept = name == "kept" and value.shape == (0,)
    return one_gradient or none_kept or (like and _size_of_its_own(operator, name, value))


def _size_of_its_own(operator: str, name: str, value: Tensor) -> bool:
    """The same for sizes alone."""
    tiles = operator in ("gram_tile", "gram_coefficients")
    lines = 1 if "total" not in schema(operator) or name == "offset" else C + 3
    return (
        operator in ("gram_units", "gram_forward")
        or (operator.startswith("gram") and name in ("weight", "unit") and value.shape[0] == C)
        or (tiles and name == "product" and max(value.shape) < C)
        or (operator == "columns_forward" and name == "logits" and value.shape[0] == N)
        or (operator.endswith("_forward") and name == "target" and value.ndim == 2 and len(value) == N)
        or (name in ("offset", "mean_weight") and value.shape[1:] == (C,) and len(value) in (lines, C + 2, C + 4))
    )
