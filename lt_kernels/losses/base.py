"""The one module behind every named loss: settings and tables, called on logits, on cosines or by a head."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels import distributed
from lt_kernels.core import checks
from lt_kernels.core.linear import BOTH, PLAIN
from lt_kernels.core.tables import TableModule, own_copy
from lt_kernels.core.terms import Reduction
from lt_kernels.margins import Margin, MixedTarget
from lt_kernels.ops import prepare, small
from lt_kernels.ops.loss import Logits, evaluate
from lt_kernels.ops.loss import features as make_source

_compiling = torch.compiler.is_dynamo_compiling


class Loss(TableModule):
    """Settings of a loss: forward(input, target) on logits, or on raw cosines where `input_kind` is "cosine".

    Args:
        weight, offset: [C] or None. margin, scale: of `functional.cosine_margin_cross_entropy`. label_smoothing: a
            number, or a tensor [C] with one for each target class. average: what "mean" divides by, the rows' weights
            ("weighted", as `F.cross_entropy`) or their number ("batch").

    The tables given here are part of the state_dict, in float64 whatever the module is cast to. Weights that a schedule
    sets are not, as a learning rate is not: `set_weight` changes neither the buffers nor the state, and whoever resumes
    a run sets them again.
    """

    tables = ("weight", "offset", "class_margin", "class_smoothing")
    beside = ("_set_weight",)
    _set = False  # whether the class weights are those of `set_weight`, not those given to the constructor
    _set_weight: Tensor | None = None
    input_kind: ClassVar[str] = "logits"
    needs_features: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        offset: Tensor | None = None,
        margin: Margin | None = None,
        scale: float = 1.0,
        focal_gamma: float = 0.0,
        label_smoothing: float | Tensor = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        average: Literal["weighted", "batch"] = "weighted",
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, checks.number("scale", scale, above=0.0)
        self.focal_gamma = checks.number("focal_gamma", focal_gamma, 0.0)
        self.ignore_index = checks.ignored("ignore_index", ignore_index)
        self.reduction: Reduction = checks.choice("reduction", reduction, ("none", "mean", "sum"))
        self.average = checks.choice("average", average, ("weighted", "batch"))
        per_class = label_smoothing if isinstance(label_smoothing, Tensor) and label_smoothing.ndim else None
        if per_class is not None:
            checks.shares("label_smoothing", per_class)
        self.label_smoothing = (
            0.0 if per_class is not None else checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
        )
        self._buffers["weight"] = None if weight is None else own_copy(_table("weight", weight))  # `weight` reads it
        for name, table in zip(self.tables[1:4], (offset, margin and margin.per_class, per_class), strict=True):
            self.register_table(name, None if table is None else _table(name, table))

    @property
    def weight(self) -> Tensor | None:
        """The class weights [C] that hold now, or None; assigning them is `set_weight` where none were given before."""
        return self._set_weight if self._set else self._buffers["weight"]

    def set_weight(self, weight: Tensor | None) -> None:
        """Set or remove the class weights [C]: what a schedule does between epochs; no part of the state.

        Weights that were given to the constructor stay in the state, and out of use.
        """
        old = next(iter(self.buffers()), self._set_weight)
        table = None if weight is None else own_copy(_table("weight", weight))
        self._set_weight = table if table is None or old is None else table.to(old.device)
        self._set = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight":
            super().__setattr__(name, value)
        elif value is None or self._buffers["weight"] is None:
            self.set_weight(value)
        else:
            super().__setattr__(name, value)
            self._set = False

    def shardable(self) -> None:
        """Raise if the loss needs all classes on each rank."""
        if self.needs_logits or self.needs_features:
            raise ValueError(f"group must be None with {type(self).__name__}, which needs all classes on each rank")

    def table(self, target: Tensor | MixedTarget, classes: int) -> Tensor | None:
        """The offset [C] for a batch."""
        return self._buffers["offset"]

    def predicted_offset(self, linear_weight: Tensor) -> Tensor | None:
        """What is added to the logits in prediction too, [C]: nothing, where the offset only corrects a prior."""
        return None

    def forward(self, input: Tensor, target: Tensor | MixedTarget) -> Tensor:
        """The loss of logits [C], [N, C], [N, C, d1, ...], or of raw cosines of that shape for a margin loss."""
        return self.evaluate(input, target)

    def evaluate(
        self, input: Tensor, target: Tensor | MixedTarget, norms: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """The loss of `input`, with the features' norms or another offset where a loss has one."""
        shape = tuple(input.shape) if isinstance(input, Tensor) else ()
        classes = shape[1] if len(shape) > 1 else shape[0] if shape else 0
        if classes == 0:
            checks.floating("input", input)
            raise ValueError(f"input must be [C], [N, C] or [N, C, d1, ...] with C at least 1, got {list(shape)}")
        table = self.table(target, classes) if table is None else table
        plain = None if norms is not None else self._plain(input, table)
        if plain is not None and (found := small.cross_entropy(input, target, *plain)) is not None:
            return found
        checks.floating("input", input)
        return evaluate(Logits(prepare.as_rows(input), norms), shape, target, **self.settings(table))

    def _plain(self, input: Tensor, table: Tensor | None) -> tuple[Any, ...] | None:
        """What the short way takes, from `weight` on; None where the loss is no plain one, or a compiler looks on.

        Buffers are read past the slow look-up of a module.
        """
        tables = self._buffers
        if _compiling() or self.margin is not None or self.scale != 1.0 or tables["class_smoothing"] is not None:
            return None
        weight = self._set_weight if self._set else tables["weight"]
        if weight is not None and self.average != "weighted":
            return None
        kind = torch.float64 if input.dtype is torch.float64 else torch.float32
        weight, offset = _cast(weight, kind), _cast(table, kind)
        return weight, offset, self.focal_gamma, self.label_smoothing, self.ignore_index, self.reduction

    def settings(self, table: Tensor | None, scale: float | None = None) -> dict[str, Any]:
        """What `ops.loss.evaluate` takes."""
        smoothing = self.label_smoothing if self.class_smoothing is None else self.class_smoothing
        return {
            "reduction": self.reduction,
            "scale": self.scale if scale is None else scale,
            "margin": self.margin,
            "class_margin": self.class_margin,
            "weight": self.weight,
            "offset": table,
            "focal_gamma": self.focal_gamma,
            "label_smoothing": smoothing,
            "ignore_index": self.ignore_index,
            "average": self.average,
        }

    def from_features(
        self,
        features: Tensor,
        linear_weight: Tensor,
        target: Tensor | MixedTarget,
        linear_bias: Tensor | None = None,
        *,
        cosine: bool = False,
        scale: float | None = None,
        group: Any = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """The loss straight from features [N, d] and class weights [C, d]; `cosine` normalises both."""
        scale = self.scale if self.input_kind == "cosine" else scale
        rows = (features, linear_weight, linear_bias, target)
        if group is not None:
            self.shardable()
            return distributed.together(group, linear_weight, self._of_source, *rows, cosine, scale, group, table)
        if self.needs_logits:
            checks.features(features, linear_weight, linear_bias)
            return self(self.logits(features, linear_weight, linear_bias, cosine, scale), target)
        short = not cosine and scale is None and isinstance(features, Tensor)
        if short and isinstance(linear_weight, Tensor) and linear_weight.ndim == 2:
            table = self.table(target, linear_weight.shape[0]) if table is None else table
            plain = self._plain(features, table)
            if plain is not None and (found := small.linear_cross_entropy(*rows, *plain)) is not None:
                return found
        if cosine and linear_bias is None and isinstance(linear_weight, Tensor):
            table = self.table(target, linear_weight.shape[0]) if table is None else table
            if (found := self._cosine(features, linear_weight, target, scale, table)) is not None:
                return found
        return self._of_source(*rows, cosine, scale, None, table)

    def _of_source(
        self,
        features: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | MixedTarget,
        cosine: bool,
        scale: float | None,
        group: Any,
        table: Tensor | None,
    ) -> Tensor:
        """The loss by operators, of all classes or of this rank's share of them."""
        checks.features(features, linear_weight, linear_bias)
        source = make_source(features, linear_weight, linear_bias, BOTH if cosine else PLAIN, self.margin, group)
        table = self.table(target, source.classes) if table is None else table
        return evaluate(source, (features.shape[0], source.classes), target, **self.settings(table, scale))

    def _cosine(
        self, features: Tensor, linear_weight: Tensor, target: Any, scale: float | None, table: Tensor | None
    ) -> Tensor | None:
        """The loss of cosines by the short way, or None."""
        tables = self._buffers
        return small.cosine_cross_entropy(
            features,
            linear_weight,
            target,
            self.margin,
            tables["class_margin"],
            self.scale if scale is None else scale,
            self.weight,
            table,
            self.focal_gamma,
            self.label_smoothing if tables["class_smoothing"] is None else None,
            self.ignore_index,
            self.reduction,
            self.average,
        )

    def logits(
        self, features: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, cosine: bool, scale: float | None
    ) -> Tensor:
        """The logits, for a loss that needs all of them."""
        if not cosine:
            return F.linear(features, linear_weight, linear_bias)
        return small.cosines(features, linear_weight) * (1.0 if scale is None else scale)


def _cast(table: Tensor | None, kind: torch.dtype) -> Tensor | None:
    """A table in the dtype of the arithmetic; anew at each call, since not every write to a table can be noticed."""
    return table if table is None or table.dtype is kind or table.requires_grad else table.to(kind)


def _table(name: str, value: Tensor) -> Tensor:
    """A vector with a number for each class."""
    checks.held(name, checks.floating(name, value))
    if value.ndim != 1 or value.numel() == 0:
        raise ValueError(f"{name} must be 1-D with a number for each class, got shape {list(value.shape)}")
    if checks.known() and bool(value.isnan().any()):
        raise ValueError(f"{name} must not hold NaN, got one for class {int(value.isnan().nonzero()[0])}")
    return value
