"""What may be drawn: valid calls only, small ones mostly, a share at the limits of blocks, slabs and short ways.

A case is made from a list of whole numbers, one a choice, 0 for the simplest. So a case that fails can be made smaller
by making numbers smaller, and stays a valid one.
"""

from __future__ import annotations

import random
from typing import Any

from fuzz.case import NAMED, Case
from fuzz.choices import CLASSES, COSINE, FEATURES, LARGE, LAYOUTS, MARGINS, REGULARISERS, ROWS, SETTINGS, WEIGHTED


class Draw:
    """One choice after another: from a random generator, or from numbers that are given, 0 beyond their end."""

    def __init__(self, random: random.Random | None = None, given: tuple[int, ...] = ()) -> None:
        self.random, self.given = random, given
        self.choices: list[int] = []
        self.made: dict[str, Any] = {}

    def below(self, high: int) -> int:
        """A whole number from 0 to high - 1."""
        place = len(self.choices)
        if self.random is not None:
            number = self.random.randrange(high)
        else:
            number = min(self.given[place], high - 1) if place < len(self.given) else 0
        self.choices.append(number)
        return number

    def of(self, options: tuple[Any, ...], usual: int = 0) -> Any:
        """One of some options; the first, the simplest, `usual` times more often than the others."""
        return options[max(0, self.below(len(options) + usual) - usual)]

    def set(self, name: str, *options: Any, usual: int = 0) -> Any:
        """A field of the case."""
        self.made[name] = self.of(options, usual)
        return self.made[name]


def sizes(d: Draw, function: str) -> None:
    """Rows, classes and features."""
    if function in ("repulsion", "lade") and d.of((False, True), 40):
        d.made |= {"rows": 2, "classes": d.of((1024, 1023, 1025, 300))}
    elif function != "repulsion" and d.of((False, True), 18):
        d.made["rows"], d.made["classes"] = d.of(LARGE)
    else:
        d.set("rows", *ROWS)
        d.set("classes", *CLASSES)
    if function not in ("offset", "loss", "lade"):
        d.set("features", *FEATURES)


def shape(d: Draw, function: str) -> None:
    """One row without a batch, or several places a row."""
    small = d.made["rows"] * d.made["classes"] < 600
    if function in ("offset", "loss") and small and d.of((False, True), 4):
        d.set("places", (2,), (3, 2), (1, 1), (2, 2, 2), (0,))
    elif function in ("linear_head", "cosine_head", "linear", "cosine") and small and d.of((False, True), 6):
        d.set("places", (2,), (2, 3))
    elif function in ("offset", "linear", "cosine", "loss") and d.made["rows"] == 1:
        d.set("single", False, True)


def target(d: Draw, function: str) -> None:
    """Indices of each dtype, probabilities, two targets a row; ignored rows."""
    if function == "repulsion":
        return
    kinds = ["index"]
    lade = function == "lade" or d.made.get("loss") == "LADELoss" or d.made.get("loss") == "EstimatedOffsetLoss"
    if not lade:
        kinds.append("mixed")
        if not d.made.get("single") and d.made["rows"] and not (function == "linear_head" and d.made.get("places")):
            kinds.append("mixed rows")
    soft = function == "loss" and d.made["loss"] in ("BalancedSoftmaxLoss", "LogitAdjustmentLoss")
    if function in ("offset", "linear") or soft:
        kinds.append("probability")
    if d.set("target", *kinds, usual=2) == "probability":
        return
    d.set("index", "int64", "int32", "int16", "int8", "uint8", usual=4)
    if not lade:
        d.set("ignored", "none", "some", "all", usual=3)
        low = -1 if d.made["index"] != "uint8" else 255
        index = d.set("ignore_index", 255 if low == 255 else -100, low, 0, usual=2)
        if d.made["index"] == "int8" and index == 255:
            d.made["ignore_index"] = -100


def tables(d: Draw, function: str) -> None:
    """Weights, offsets, focal factor and smoothing, as far as the function takes them."""
    soft = d.made.get("target") == "probability"
    if function in NAMED:
        if d.made["loss"] in WEIGHTED:
            d.set("weight", "none", "given", "zeros", "wide", usual=1)
        if d.made["loss"] == "CrossEntropyLoss":
            d.set("smoothing", 0.0, 0.1, 1.0, usual=2)
        if d.made["loss"] in ("BalancedSoftmaxLoss", "LogitAdjustmentLoss", "LADELoss"):
            d.set("absent", False, True, usual=1)
        return
    d.set("weight", "none", "given", "zeros", "wide", usual=3)
    forms = ["none", "class"]
    if not d.made.get("single") and d.made["classes"] < 200 and not soft:
        forms.append("target")
    if d.made["rows"] and not d.made.get("places"):
        forms.append("row")
    if d.set("offset", *forms, usual=2) != "none":
        d.set("absent", False, True)
        d.set("learned", False, True)
    if not soft:
        d.set("gamma", 0.0, 0.5, 1.0, 2.0, 5.0, usual=6)
    d.set("z_loss", 0.0, 1e-3, 0.5, usual=6)
    if function != "cosine":
        d.set("softcap", 0.0, 1.5, 30.0, usual=8)
    if d.made["rows"]:
        d.set("rows_weight", "none", "given", "zeros", usual=3)
    if not soft and not d.made.get("single"):
        d.set("ahead", 0, 1, 2, usual=8)
    classes = () if soft else ("classes",)
    d.set("smoothing", 0.0, 0.1, 1.0, 0.9, *classes, usual=5)


def numbers(d: Draw, function: str) -> None:
    """Spread, shift, what is not finite, and the incoming gradient."""
    logits = function in ("offset", "lade")
    if function in ("offset", "lade", "linear"):
        d.set("spread", 1.0, 8.0, 50.0, 0.01, usual=2)
    special = ["none", "nan", "inf", "-inf", "equal"] if logits else ["none", "nan", "inf", "zero row"]
    if function in ("cosine", "cosine_head", "repulsion"):
        special.append("long")
    if function == "loss":
        special = ["none", "nan"]
    if function == "repulsion":
        special = ["none", "zero row", "long"]
    d.set("special", *special, usual=18)
    if logits and d.of((False, True), 7):
        high = (1e4,) if d.made["dtype"] == "float16" else (1e4, 1e6, 1e10, -1e6)
        d.set("shift", *high)
        d.set("shifts", False, True)
    ends = ("zero",) if function == "repulsion" else ("zero", "inf")  # what touches nothing would be 0 times infinity
    d.set("incoming", "usual", *ends, usual=12)


def running(d: Draw, function: str) -> None:
    """How it is called."""
    d.set("layout", *LAYOUTS, usual=4)
    if function not in ("offset", "loss", "lade", "repulsion"):
        logits = d.made["rows"] * d.made["classes"]  # a small budget has many slabs, which take their time
        budgets = (
            *((16,) if logits < 60 else ()),
            *((512,) if logits < 600 else ()),
            *((4096,) if logits < 5000 else ()),
        )
        d.set("budget", 0, *budgets, 65536, usual=5)
        d.set("frozen", False, True, usual=4)
    d.set("threads", 1, 2, usual=3)
    d.set("wing", "as shipped", "compiled", "reference", usual=1)
    modes = ["plain", "no_grad", "autocast", "again"]
    if function in ("offset", "linear", "cosine", "loss"):
        modes.append("func")
    d.set("mode", *modes, usual=6)
    d.made["seed"] = d.below(2**20)


def regular(d: Draw, function: str) -> None:
    """What a function or a loss has of its own."""
    if function in NAMED:
        names = [name for name in SETTINGS if function != "linear_head" or name not in COSINE]
        names = [name for name in names if function == "linear_head" or name != "EstimatedOffsetLoss"]
        d.set("loss", *names)
    given = REGULARISERS.get(function) or (SETTINGS[d.made["loss"]] if function in NAMED else {})
    chosen = {name: d.of(options, 1) for name, options in given.items()}
    d.made["settings"] = tuple((name, value) for name, value in chosen.items() if value != given[name][0])
    if function in ("linear", "linear_head") and d.made.get("loss") != "EstimatedOffsetLoss":
        d.set("bias", False, True)
    if function == "cosine":
        d.made["margin"] = d.of(((), *MARGINS), 2)
        d.set("scale", 30.0, 1.0, 64.0, 1e-3, 500.0, usual=2)
    if function == "cosine_head":
        d.set("scale", 30.0, 1.0)
    reductions = ["mean", "sum", "none"]
    if d.made.get("loss") in ("LADELoss", "EstimatedOffsetLoss") and function in NAMED:
        reductions = ["mean"]
    if function != "lade":
        d.set("reduction", *reductions)


def possible(case: Case) -> Case:
    """The case without what would be refused, for good reasons."""
    changed: dict[str, Any] = {}
    lade = case.function == "lade" or (case.function in NAMED and case.loss == "LADELoss")
    if case.rows == 0 and (lade or case.loss == "EstimatedOffsetLoss"):
        changed["rows"] = 3
    if case.classes == 1 and ("spread", "others") in case.settings:
        changed["classes"] = 5
    if ("base", "cb") in case.settings:  # has weights of its own
        changed["weight"] = "none"
    if lade or case.loss == "EstimatedOffsetLoss":
        changed |= {"places": (), "single": False}
    if case.loss == "ARBLoss" and ("counts", "batch") in case.settings:  # a pair's second target may not be there
        changed |= {"target": "index"}
    if not case.takes_logits and (case.dtype == "bfloat16" or case.mode == "autocast"):
        # torch's products of bfloat16 read the gap behind a row, or the next row (docs/reliability.md)
        changed |= {"layout": "dense"} if case.layout in ("apart", "strided") else {}
        changed |= {"incoming": "usual"} if case.incoming == "inf" else {}
        changed |= {"special": "none"} if case.special in ("nan", "inf") else {}
    most = {"int8": 127, "uint8": 255}.get(case.index, 2**15)
    if case.classes > most:
        changed["index"] = "int64"
    return case if not changed else Case(**{**vars(case), **changed})


def case_of(d: Draw, function: str) -> Case:
    """A valid case of a function."""
    d.made["function"] = function
    d.set("dtype", "float32", "float64", "bfloat16", "float16", usual=1)
    sizes(d, function)
    regular(d, function)
    shape(d, function)
    target(d, function)
    if function not in REGULARISERS:
        tables(d, function)
    numbers(d, function)
    running(d, function)
    return possible(Case(**d.made))
