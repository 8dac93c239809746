"""One case: all that a call and its tensors are made from. Its repr is Python that makes it again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
INDICES = {
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
LOGITS = ("offset", "loss", "lade")  # what takes logits or cosines; all else takes features and class weights
NAMED = ("loss", "linear_head", "cosine_head")


@dataclass(frozen=True)
class Case:
    """A call of a public name. Each default is the simplest value, and only what differs from it is shown."""

    function: str = "offset"
    loss: str = "CrossEntropyLoss"  # of "loss", "linear_head", "cosine_head"
    settings: tuple[tuple[str, Any], ...] = ()  # of that loss, or of a regulariser
    dtype: str = "float32"
    rows: int = 1
    classes: int = 2
    features: int = 2
    places: tuple[int, ...] = ()  # d1, ... of logits [N, C, d1, ...] and of features [N, d1, ..., d]
    single: bool = False  # logits [C] or features [d]
    layout: str = "dense"
    target: str = "index"  # or "probability", "mixed", "mixed rows"
    index: str = "int64"
    ignored: str = "none"  # or "some", "all"
    ignore_index: int = -100
    weight: str = "none"  # or "given", "zeros", "wide" (float64)
    offset: str = "none"  # or "class", "row", "target"
    learned: bool = False  # whether the offset takes a gradient
    absent: bool = False  # whether some classes are not there
    gamma: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    rows_weight: str = "none"  # of each row: or "given", "zeros"
    ahead: int = 0  # the shift of the target
    smoothing: float | str = 0.0  # or "classes"
    reduction: str = "mean"
    margin: tuple[Any, ...] = ()  # its name and arguments; counts are the case's own
    scale: float = 1.0
    bias: bool = False
    spread: float = 1.0  # of logits, or of features
    shift: float = 0.0  # added to all logits
    shifts: bool = False  # whether each row has another multiple of it
    special: str = "none"  # "nan", "inf", "-inf", "equal", "zero row", "parallel", "long"
    budget: int = 0  # bytes; 0 leaves the usual one
    threads: int = 1
    wing: str = "as shipped"
    mode: str = "plain"  # or "no_grad", "autocast", "func", "again" (the graph is used twice)
    incoming: str = "usual"  # or "zero", "inf"
    frozen: bool = False  # whether the class weights take no gradient
    seed: int = 0

    def __repr__(self) -> str:
        shown = (field.name for field in fields(self) if getattr(self, field.name) != field.default)
        return f"Case({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def kind(self) -> torch.dtype:
        """The dtype of the input."""
        return DTYPES[self.dtype]

    @property
    def name(self) -> str:
        """What is counted and shown in tables."""
        return self.loss if self.function == "loss" else self.function

    @property
    def takes_logits(self) -> bool:
        """Whether the input has classes rather than features."""
        return self.function in LOGITS

    @property
    def options(self) -> dict[str, Any]:
        """The settings by name."""
        return dict(self.settings)
