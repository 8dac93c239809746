"""The checks of an operator's arguments: the rank, sizes, dtype and device of tensors, and the range of numbers.

They run before every kernel that is written in Python or Triton; csrc/tensors.h has the same ones for C++. So an
operator that is called directly raises an error that names the argument, and never reads outside a tensor. No value of
a tensor is read here, so there is no synchronisation with a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.core.linear import Normalize
from lt_kernels.core.numbers import accumulate_type, product_type
from lt_kernels.core.terms import Phi
from lt_kernels.reference.gram import PAIRS, tiles

_REAL = (torch.float32, torch.float64)
_FLOATING = (*_REAL, torch.bfloat16, torch.float16)
# The dtypes that a word stands for; "number", "same" and "product" depend on the first tensor (`_allowed`).
_DTYPES = {
    "values": _FLOATING,
    "real": _REAL,
    "index": (torch.int64,),
    "place": (torch.int32,),
    "byte": (torch.int8,),
    "double": (torch.float64,),
    "flag": (torch.bool,),
}
# For each argument a word for its dtype, and a letter for each size; equal letters are equal sizes. "|" means "or".
_TABLES = {"offset": "number R C", "offset_row": "index N", "mean_weight": "number S C"}
_NUMBERS = {"rest": "number N", "top": "number N", "d_rest": "number N", "d_own": "number N K"}
_NUMBERS |= {"d_own_offset": "number N K", "d_mean": "number N", "grad": "number N", "sample_weight": "number N"}
_LOGITS = {"logits": "values N C", "target": "index N K", "row_scale": "number N", "column_scale": "number C"}
_BY_CLASS = dict.fromkeys(("weight", "class_margin", "class_smoothing"), "number C")
_ROWS = {**_LOGITS, **_TABLES, **_NUMBERS}
_LOSS = {**_ROWS, "target": "index N", "total": "number S", **_BY_CLASS}
_SLOPES = {**_ROWS, "target": "index N", "saved": "number 6 N", "grad": "number | number N"}
_KEPT = "product N C | product 0 | number N C | number 0"  # the numbers are capped logits
_SCALES = {"row_scale": "number N | number 0", "column_scale": "number C | number 0", "kept": _KEPT}
_FEATURES = {"input": "values N D", "weight": "floating C D", "bias": "floating C", "target": "index N K"}
_LINEAR = {**_FEATURES, **_TABLES, **_NUMBERS, **_SCALES}
_MARGINS = dict.fromkeys(("top", "own", "rival", "own_offset", "norm", "mean", "total", "share"), "number N")
_MARGINS |= {"sample_weight": "number N", "rest": "real N", "target": "index N", **_BY_CLASS}
_PAIRS = {"first": "place P", "second": "place P", "value": "number P", "count": "index 1"}
_GRAM = dict.fromkeys(("scale", "slope", "own", "total", "grad", "step", "error", "shift"), "number C")
_GRAM |= {"weight": "values C D", "unit": "byte C D", "product": "real H W", "dense": "flag T T", **_PAIRS}
_COLUMNS = {
    "logits": "values N C",
    "target": "index N",
    "row_offset": "number N",
    "lse": "number C",
    "d_lse": "number C",
}
_COLUMNS |= {"d_own": "number N", "class_counts": "double C"}
_KEYS = {"query": "real N D", "key": "same K D", "query_class": "index N", "key_class": "index K", "offset": "same K"}
_KEYS |= {"left_out": "index N", "rest": "same N", "own": "same N", "d_rest": "same N", "d_own": "same N"}
_ROOMS = {"rows": _ROWS, "linear": _LINEAR, "gram": _GRAM, "columns": _COLUMNS, "keys": _KEYS, "margins": _MARGINS}
_OPERATORS = {"rows_loss": _LOSS, "rows_loss_gradient": _LOSS, "rows_loss_backward": _SLOPES}
_LITERALS = {str(size): size for size in (0, 1, 6)}
_MOST = 2**62
# The ranges of arguments that are numbers, both ends included.
_RANGES = {
    "kind": (0, max(Phi)),
    "reduction": (0, 3),
    "normalize": (0, 2),
    "row_slab": (1, _MOST),
    "class_slab": (1, _MOST),
    **dict.fromkeys(("start", "classes", "capacity", "row", "column"), (0, _MOST)),
    **dict.fromkeys(("side", "density"), (1, _MOST)),
}


class _Argument(NamedTuple):
    """A tensor argument: its name, its place, and the forms that it may have, as (word, sizes)."""

    name: str
    place: int
    forms: tuple[tuple[str, tuple[str, ...]], ...]


def _allowed(word: str, first: Tensor) -> tuple[torch.dtype, ...]:
    """The dtypes that a word stands for, if the first tensor is `first`."""
    if word == "number":
        return (accumulate_type(first.dtype),)
    if word in ("same", "product"):
        return (first.dtype if word == "same" else product_type(first),)
    return _DTYPES.get(word, _FLOATING)


class Door:
    """The check of one operator's arguments; `operator` is its overload."""

    def __init__(self, room: str, operator: Any) -> None:
        self.operator = operator.name().partition("::")[2].partition(".")[0]
        known = _OPERATORS.get(self.operator, _ROOMS[room])
        self.names = [argument.name for argument in operator._schema.arguments]
        self.tensors, self.numbers = [], []
        for place, argument in enumerate(operator._schema.arguments):
            if "Tensor" in str(argument.type):
                forms = (form.split() for form in known[argument.name].split("|"))
                form = tuple((word, tuple(sizes)) for word, *sizes in forms)
                self.tensors.append(_Argument(argument.name, place, form))
            elif argument.name in _RANGES:
                self.numbers.append((argument.name, place, *_RANGES[argument.name]))
        self.rules = [rule for named, rule in _RULES.items() if named in self.names]

    def guarding(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel with the check before it."""

        def guarded(*inputs: Any) -> Any:
            self.check(inputs)
            return kernel(*inputs)

        return guarded

    def check(self, inputs: tuple[Any, ...]) -> None:
        """Raise for a tensor of another rank, size, dtype or device, or a number outside of its range."""
        sizes, first = dict(_LITERALS), inputs[0]
        device = first.device
        for argument in self.tensors:
            value = inputs[argument.place]
            if value is None:
                continue
            if value.device != device:
                raise self.error(argument.name, f"be on {device} as {self.names[0]} is", value.device)
            if not any(_fits(value, word, letters, first, sizes) for word, letters in argument.forms):
                raise self._unfit(argument, value, first, sizes)
        for name, place, least, most in self.numbers:
            if not least <= inputs[place] <= most:
                raise self.error(name, f"be from {least} to {most}", inputs[place])
        if self.rules:
            named = dict(zip(self.names, inputs))
            for rule in self.rules:
                rule(self, named, sizes)

    def _unfit(self, argument: _Argument, value: Tensor, first: Tensor, sizes: dict[str, int]) -> Exception:
        forms = []
        for word, letters in argument.forms:
            kinds = " or ".join(str(kind).removeprefix("torch.") for kind in _allowed(word, first))
            forms.append(f"{kinds} [{', '.join(str(sizes.get(letter, letter)) for letter in letters)}]")
        got = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        fits = any(value.dtype in _allowed(word, first) for word, _ in argument.forms)
        return self.error(argument.name, f"be {', or '.join(forms)}", got, ValueError if fits else TypeError)

    def error(self, name: str, rule: str, got: object, kind: type[Exception] = ValueError) -> Exception:
        """The error that names an argument, what it must be, and what it is."""
        return kind(f"{self.operator}: {name} must {rule}, got {got}")


def _fits(value: Tensor, word: str, letters: tuple[str, ...], first: Tensor, sizes: dict[str, int]) -> bool:
    """Whether a tensor has this form; adds the sizes of letters that are new to `sizes`."""
    if value.ndim != len(letters) or value.dtype not in _allowed(word, first):
        return False
    return all(sizes.setdefault(letter, size) == size for letter, size in zip(letters, value.shape))


# Rules on several arguments. Each applies to all operators that have an argument with its name in `_RULES`.
def _lines(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    """A table has one row for all rows, or one for each, or some that offset_row chooses from."""
    rows, picked = sizes["N"], named["offset_row"] is not None
    for name, letter in (("offset", "R"), ("mean_weight", "S")):
        lines = sizes.get(letter, 1)
        if lines not in (1, rows) and not (picked and lines):
            raise door.error(name, f"have 1 or {rows} rows, or some that offset_row chooses from", lines)
    if sizes.get("K", 1) > 2:
        raise door.error("target", "have at most two classes a row", sizes["K"])


def _shard(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    if named["start"] + sizes["C"] > named["classes"]:
        rule = f"leave room for {sizes['C']} of {named['classes']} classes"
        raise door.error("start", rule, named["start"])


def _tile(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    for name, letter in (("row", "H"), ("column", "W")):
        if named[name] + sizes[letter] > sizes["C"]:
            raise door.error(name, f"leave room for {sizes[letter]} of {sizes['C']} classes", named[name])


def _tiles(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    parts = -(-sizes["C"] // named["side"])
    most = parts * (parts + 1) // 2
    for name, low, high in (("end", 0, most), ("begin", 0, named["end"])):
        if not low <= named[name] <= high:
            raise door.error(name, f"be from {low} to {high}", named[name])


def _order(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    """SphereFace's order, an integer, is passed as its margin."""
    if named["kind"] == Phi.SPHERE and not 1 <= named["margin"] < 2**31:
        raise door.error("margin", "be from 1 to 2147483647 for this kind", named["margin"])


def _dense(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    room = PAIRS * sizes["C"]
    if sizes["P"] != room:
        raise door.error("first", f"have room for {room} pairs", sizes["P"])
    side = tiles(sizes["C"])
    if sizes["T"] != side:
        raise door.error("dense", f"be [{side}, {side}], a flag for each tile", list(named["dense"].shape))


def _norms(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    """The inverse norms that a backward pass needs for this `normalize`."""
    for name, least, letter in (("row_scale", Normalize.BOTH, "N"), ("column_scale", Normalize.CLASSES, "C")):
        wanted = sizes[letter] if named["normalize"] >= least else 0
        if named[name].numel() != wanted:
            raise door.error(name, f"have {wanted} numbers for normalize={named['normalize']}", named[name].numel())


def _wants(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    flags = 4 if "weight" in named else 2
    if len(named["wants"]) != flags:
        raise door.error("wants", f"have {flags} flags", len(named["wants"]))


def _smoothed(door: Door, named: dict[str, Any], sizes: dict[str, int]) -> None:
    """The arguments that label smoothing needs are given together or not at all."""
    group = [name for name in ("mean", "mean_weight", "total", "share") if name in named]
    given = [name for name in group if named[name] is not None]
    if given and len(given) < len(group):
        absent = next(name for name in group if name not in given)
        raise door.error(absent, f"be given with {given[0]}", None)


_RULES: dict[str, Callable[[Door, dict[str, Any], dict[str, int]], None]] = {
    "offset_row": _lines,
    "start": _shard,
    "row": _tile,
    "side": _tiles,
    "kind": _order,
    "dense": _dense,
    "kept": _norms,
    "wants": _wants,
    "class_smoothing": _smoothed,
}


def one_device(inputs: tuple[Any, ...]) -> None:
    """Raise for tensors on several devices, which fake kernels do not check."""
    found = {value.device for value in inputs if isinstance(value, Tensor)}
    if len(found) > 1:
        raise ValueError(f"all tensors must be on one device, got {', '.join(sorted(map(str, found)))}")
