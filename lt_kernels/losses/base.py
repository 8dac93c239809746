"""The module behind every named loss: its settings and tables; called with logits or cosines, or by a head."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.tables import TableModule, described, own_copy
from lt_kernels.core.terms import Reduction, Terms
from lt_kernels.losses.features import of_features
from lt_kernels.margins import Margin, MixedTarget
from lt_kernels.ops import prepare
from lt_kernels.ops.loss import evaluate, one_target
from lt_kernels.ops.ranks import placements
from lt_kernels.ops.ranks.sampling import Sampling
from lt_kernels.ops.rows import Capped
from lt_kernels.ops.sources import Logits

# What to use where a named loss sets an option itself.
_INSTEAD = {"focal_gamma": "give gamma", "tau": "losses.LogitAdjustmentLoss takes any"}


class Loss(TableModule):
    """Settings of a loss: forward(input, target) on logits, or on raw cosines where `input_kind` is "cosine".

    Args:
        weight, offset: [C] or None. margin, scale: of `functional.cosine_margin_cross_entropy`. label_smoothing: a
            number, or a tensor [C] with one for each target class. average: what "mean" divides by, the rows' weights
            ("weighted", as `F.cross_entropy`) or their number ("batch").
        z_loss, softcap: of `functional.offset_cross_entropy`. A softcap is part of the model: heads predict with it,
            and their `scaled` has it. Losses of cosines have none.

    The tables given here are part of the state_dict, in float64 whatever the module is cast to. Weights that a schedule
    sets are not, as a learning rate is not: `set_weight` changes neither the buffers nor the state, and whoever resumes
    a run sets them again.
    """

    tables = ("weight", "offset", "class_margin", "class_smoothing")
    beside = ("_set_weight",)
    _set = False  # whether the class weights are those of `set_weight`, not those given to the constructor
    _set_weight: Tensor | None = None
    _recipe: prepare.Recipe | None = None
    z_loss, softcap = 0.0, None  # of a loss that was pickled before there were any
    input_kind: ClassVar[str] = "logits"
    needs_features: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    own: ClassVar[tuple[str, ...]] = ()  # what a named loss adds to the settings of all

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        offset: Tensor | None = None,
        margin: Margin | None = None,
        scale: float = 1.0,
        focal_gamma: float = 0.0,
        label_smoothing: float | Tensor = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        average: Literal["weighted", "batch"] = "weighted",
    ) -> None:
        super().__init__()
        if margin is not None and not isinstance(margin, Margin):
            raise TypeError(f"margin must be CosFace, ArcFace, SphereFace, LDAM, DBM or None, got {margin!r}")
        self.margin, self.scale = margin, checks.number("scale", scale, above=0.0)
        self.focal_gamma = checks.number("focal_gamma", focal_gamma, 0.0)
        self.z_loss, self.softcap = checks.number("z_loss", z_loss, 0.0), self._cap(softcap)
        self.ignore_index = checks.ignored("ignore_index", ignore_index)
        self.reduction: Reduction = checks.choice("reduction", reduction, ("none", "mean", "sum"))
        self.average = checks.choice("average", average, ("weighted", "batch"))
        per_class = label_smoothing if isinstance(label_smoothing, Tensor) and label_smoothing.ndim else None
        if per_class is not None:
            checks.shares("label_smoothing", per_class)
        smoothing = label_smoothing if per_class is None else 0.0
        self.label_smoothing = checks.number("label_smoothing", smoothing, 0.0, 1.0)
        self._buffers["weight"] = None if weight is None else own_copy(_table("weight", weight))  # `weight` reads it
        for name, table in zip(self.tables[1:4], (offset, margin and margin.per_class, per_class), strict=True):
            self.register_table(name, None if table is None else _table(name, table))

    def _cap(self, softcap: float | None) -> float | None:
        """The softcap, which only logits have."""
        if softcap is None:
            return None
        if self.margin is not None or self.input_kind == "cosine":
            owner = type(self).__name__
            raise ValueError(f"softcap must be None with {owner}, whose logits are scaled cosines, got {softcap!r}")
        return checks.number("softcap", softcap, above=0.0)

    def _with(self, options: dict[str, Any], **own: Any) -> dict[str, Any]:
        """The options with those that this loss sets itself, which nobody else may give."""
        for name in own:
            if name in options:
                owner, shown = type(self).__name__, checks.shown(options[name])
                instead = _INSTEAD.get(name, "losses.Loss takes any")
                raise TypeError(f"{name} must be left to {owner}, which sets it ({instead}), got {shown}")
        return {**options, **own}

    @property
    def weight(self) -> Tensor | None:
        """The class weights [C] in use, or None; assigning to it is `set_weight` if the constructor got none."""
        return self._set_weight if self._set else self._buffers["weight"]

    def set_weight(self, weight: Tensor | None) -> None:
        """Set or remove the class weights [C], as a schedule does between epochs; they are no part of the state.

        Weights that were given to the constructor stay in the state, but are not used.
        """
        old = next(iter(self.buffers()), self._set_weight)
        table = None if weight is None else own_copy(_table("weight", weight))
        self._set_weight, self._set = table if table is None or old is None else table.to(old.device), True

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight":
            super().__setattr__(name, value)
        elif value is None or self._buffers["weight"] is None:
            self.set_weight(value)
        else:
            super().__setattr__(name, value)
            self._set = False

    def shardable(self) -> None:
        """Raise if the loss needs all classes, or all rows, on each rank."""
        if self.needs_logits or self.needs_features:
            raise ValueError(
                f"loss must be one whose classes and rows can be sharded, got {type(self).__name__}, which needs all "
                "of them on each rank: give it plain tensors"
            )

    def of_cosines(self) -> None:
        """Raise if the loss is one of linear logits alone."""
        if self.softcap is not None:
            raise ValueError(f"loss must have softcap=None where its logits are scaled cosines, got {self.softcap!r}")

    def sampleable(self) -> None:
        """Raise if the loss is not one of some classes' logits and of per-class tables."""
        if self.needs_logits or self.needs_features:
            raise ValueError(f"sample must be None with {type(self).__name__}, which needs the logits of all classes")

    def ranks(self) -> Any:
        """The process group that a loss exchanges statistics of the batch with; None for one that has none."""
        return None

    def table(
        self, target: Tensor | MixedTarget, classes: int, shape: Any = None, sample_weight: Tensor | None = None
    ) -> Tensor | None:
        """The offset [C] for this batch; `shape` is that of the logits, which the target is held against if known."""
        return self._buffers["offset"]

    def table_of_whole(
        self, target: Tensor | MixedTarget, classes: int, shape: Any = None, sample_weight: Tensor | None = None
    ) -> Tensor | None:
        """The offset [C] for a batch that is the same on all ranks that the classes are sharded over."""
        return self.table(target, classes, shape, sample_weight)

    def predicted_offset(self, linear_weight: Tensor) -> Tensor | None:
        """The offset [C] that also holds for prediction; None, because an offset that corrects a prior does not."""
        return None

    def capped(self, logits: Tensor) -> Tensor:
        """The logits as the softmax sees them and as a model predicts with them: softcap tanh(logits / softcap)."""
        return logits if self.softcap is None else Capped.apply(logits, self.softcap).to(logits.dtype)

    def forward(self, input: Tensor, target: Tensor | MixedTarget, *, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of logits [C], [N, C], [N, C, d1, ...], or of raw cosines of that shape for a margin loss.

        `sample_weight` is a factor for each row, as of `functional.offset_cross_entropy`.
        """
        return self.evaluate(input, target, sample_weight=sample_weight)

    def evaluate(
        self,
        input: Tensor,
        target: Tensor | MixedTarget,
        norms: Tensor | None = None,
        table: Tensor | None = None,
        sample_weight: Tensor | None = None,
        changed: dict[str, Any] | None = None,
    ) -> Tensor:
        """The loss of `input`, with the features' norms or another offset where a loss has one.

        `changed`: settings, by their names in `settings`, that this call has instead of the loss's own.
        """
        shape = input.shape if isinstance(input, Tensor) else ()
        classes = shape[1] if len(shape) > 1 else shape[0] if shape else 0
        rows = {"input": input, "target": target, "norms": norms, "sample_weight": sample_weight}
        if placements.there(*rows.values(), table):
            self.shardable()
            table = self.table(target, classes, shape, sample_weight) if table is None else table
            return placements.through(self._of_logits, rows, {}, self.settings(table, changed=changed))
        if classes == 0:
            checks.floating("input", input)
            raise ValueError(f"input must be [C], [N, C] or [N, C, d1, ...] with C at least 1, got {list(shape)}")
        table = self.table(target, classes, shape, sample_weight) if table is None else table
        plain = norms is None and sample_weight is None and self.softcap is None and changed is None
        if plain and prepare.simple(input, classes, target, table):
            terms = self.prepared(input, classes, table)
            found = one_target(Logits(input), target, terms, self.reduction, self.average)
            assert found is not None  # there is one for logits without norms
            return found
        return self._of_logits(**rows, settings=self.settings(table, changed=changed))

    def _of_logits(
        self,
        input: Tensor,
        target: Tensor | MixedTarget,
        norms: Tensor | None,
        sample_weight: Tensor | None,
        settings: dict[str, Any],
        group: None = None,
        ranks: Any = None,
    ) -> Tensor:
        """The loss by operators, of all rows or of this rank's."""
        checks.floating("input", input)
        source = Logits(prepare.as_rows(input), norms, ranks)
        return evaluate(source, tuple(input.shape), target, sample_weight=sample_weight, **settings)

    def prepared(self, input: Tensor, classes: int, table: Tensor | None) -> Terms:
        """The terms for this kind of input, without a softcap; checked again when what they are made of changes."""
        held, buffers = self.__dict__, self._buffers
        weight = self._set_weight if self._set else buffers["weight"]
        tables = (weight, buffers["class_margin"], buffers["class_smoothing"], held["margin"])
        numbers = (held["scale"], held["focal_gamma"], held["label_smoothing"], held["ignore_index"], self.z_loss)
        key, recipe = (input.dtype, classes, *numbers), self._recipe
        if recipe is None or recipe.key != key or not recipe.holds(tables):
            settings = self.settings(None)
            del settings["reduction"], settings["average"], settings["softcap"]
            recipe = held["_recipe"] = prepare.Recipe(key, tables, input, classes, settings)
        return recipe.terms(table)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the recipe, which is made again when it is needed."""
        return {name: value for name, value in super().__getstate__().items() if name != "_recipe"}

    def settings(
        self, table: Tensor | None, scale: float | None = None, changed: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What `ops.loss.evaluate` takes, with some of it changed."""
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
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "ignore_index": self.ignore_index,
            "average": self.average,
            **(changed or {}),
        }

    def extra_repr(self) -> str:
        """A named loss's own settings, and those of all losses that are not the usual ones."""
        settings = self.settings(self._buffers["offset"])
        usual = {name: one.default for name, one in inspect.signature(Loss).parameters.items()}
        own = {name: getattr(self, name) for name in self.own}
        return described({**own, **{name: settings[name] for name in usual}}, usual)

    def from_features(
        self,
        features: Tensor,
        linear_weight: Tensor,
        target: Tensor | MixedTarget,
        linear_bias: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        cosine: bool = False,
        scale: float | None = None,
        group: Any = None,
        table: Tensor | None = None,
        sample: Sampling | None = None,
        changed: dict[str, Any] | None = None,
    ) -> Tensor:
        """The loss of features [N, d] and class weights [C, d]; `cosine` normalises both, `sample` chooses classes.

        `changed` is that of `evaluate`.
        """
        rows = {"input": features, "target": target, "sample_weight": sample_weight}
        weights = {"linear_weight": linear_weight, "linear_bias": linear_bias}
        how: dict[str, Any] = {"cosine": cosine, "scale": scale, "group": group, "table": table, "sample": sample}
        return of_features(self, rows, weights, **how, changed=changed)


def _table(name: str, value: Tensor) -> Tensor:
    """A vector with a number for each class."""
    checks.held(name, checks.floating(name, value), "make it with device='cpu'")
    if value.ndim != 1 or value.numel() == 0:
        raise ValueError(f"{name} must be 1-D with a number for each class, got shape {list(value.shape)}")
    if checks.known() and bool(value.isnan().any()):
        raise ValueError(f"{name} must not hold NaN, got one for class {int(value.isnan().nonzero()[0])}")
    return value
