"""Named losses that look at the whole batch: ARB, and with a second term LADE and the estimated offset."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from lt_kernels import priors
from lt_kernels.core import checks
from lt_kernels.core.targets import check_target
from lt_kernels.functional import MixedTarget
from lt_kernels.losses.base import Loss
from lt_kernels.losses.whole import WholeBatch
from lt_kernels.ops.loss import check_shapes
from lt_kernels.ops.ranks import batches, placements
from lt_kernels.ops.ranks.columns import lade_of_ranks
from lt_kernels.ops.ranks.dealing import Dealt
from lt_kernels.regularizers import CenterLoss, negative_entropy


class ARBLoss(Dealt, Loss):
    """-log (n_y e^{z_y} / sum_k n_k e^{z_k}): balanced softmax, with the counts of the training set or of the batch.

    With counts="batch", classes that are not in the batch drop out of the sum and get exactly no gradient (ARB-Loss,
    2022). Under a `MixedTarget` the counts are those of the first targets; class probabilities are summed. A row counts
    as often as its sample weight says.

    Args:
        class_counts: training samples of each class [C]; not needed with counts="batch".
        counts: "global" or "batch".
        batch_group: the ranks whose counts of the batch are added up in training (docs/distributed.md): "all", a
            process group, or None for this process alone. A head whose classes are sharded has the whole batch on each
            rank, and adds nothing up unless a process group is given here.
    """

    own = ("counts",)

    def __init__(
        self,
        class_counts: Any = None,
        *,
        counts: Literal["global", "batch"] = "global",
        batch_group: Any = "all",
        **options: Any,
    ) -> None:
        checks.choice("counts", counts, ("global", "batch"))
        if counts == "global" and class_counts is None:
            raise ValueError("class_counts must be given with counts='global', got None")
        super().__init__(**self._with(options, offset=priors.log_prior(class_counts) if counts == "global" else None))
        self.counts, self.batch_group = counts, batch_group

    def ranks(self) -> Any:
        """The process group to exchange with now: none with the counts of the training set."""
        return super().ranks() if self.counts == "batch" else None

    def table(
        self, target: Tensor | MixedTarget, classes: int, shape: Any = None, sample_weight: Tensor | None = None
    ) -> Tensor | None:
        """The offset [C]: of the training set, or of this batch."""
        given = (target, classes, self.ranks(), shape, sample_weight)
        return self.offset if self.counts == "global" else self._batch(*given)

    def table_of_whole(
        self, target: Tensor | MixedTarget, classes: int, shape: Any = None, sample_weight: Tensor | None = None
    ) -> Tensor | None:
        """The offset [C], where every rank that the classes are sharded over has the same batch."""
        if self.counts == "global":
            return self.offset
        group = None if self.batch_group == "all" else self.ranks()
        return self._batch(target, classes, group, shape, sample_weight)

    def _batch(
        self, target: Tensor | MixedTarget, classes: int, group: Any, shape: Any, sample_weight: Tensor | None
    ) -> Tensor:
        """log N_c [C] of the batch, summed over the ranks of a group."""
        first = target.first if isinstance(target, MixedTarget) else target
        sample_weight = placements.whole(sample_weight)
        if checks.is_dtensor(first):  # whose rows are those of all its ranks
            return self._count(placements.whole(first), classes, None, shape, sample_weight).log()
        return placements.together(group, first, self._count, target, classes, group, shape, sample_weight).log()

    def _count(
        self, target: Tensor | MixedTarget, classes: int, group: Any, shape: Any, sample_weight: Tensor | None
    ) -> Tensor:
        targets = [target.first, target.second] if isinstance(target, MixedTarget) else [target]
        if group is None:
            return priors.batch_count(targets[0], classes, self.ignore_index, sample_weight)
        # all checks before the exchange, because an error after it would not be raised on other ranks
        if shape is not None:
            check_shapes(target, shape)
        count = priors.batch_count(targets[0], classes, self.ignore_index, sample_weight)
        for one in targets:
            if checks.readable(one) and not one.is_floating_point():
                check_target(one, classes, self.ignore_index)
        return batches.totals(group, count, [("num_classes", classes)])


class LADELoss(WholeBatch, Dealt, Loss):
    """Balanced softmax + alpha `functional.lade_regularizer` (Hong et al., 2021).

    Args:
        class_counts: training samples of each class [C].
        ignore_index: rows with this target are left out of both terms.
        alpha: the regulariser's weight. lam, importance, classes: of `functional.lade_regularizer`.
        batch_group: the ranks whose rows the regulariser sums over in training (docs/distributed.md): "all", a process
            group, or None for this process alone. The balanced softmax is the mean over this rank's rows.

    With a softcap both terms are those of the capped logits; a z-loss is part of the first.
    """

    no_rows = "its regulariser is that of the whole batch"
    own = ("alpha", "lam", "importance", "classes")
    tables = (*Loss.tables, "class_counts")
    needs_logits: ClassVar[bool] = True

    def __init__(
        self,
        class_counts: Any,
        alpha: float = 0.1,
        lam: float = 0.1,
        *,
        importance: Literal["class", "sample"] = "class",
        classes: Literal["all", "present"] = "all",
        batch_group: Any = "all",
        **options: Any,
    ) -> None:
        super().__init__(**self._with(options, offset=priors.log_prior(class_counts)))
        if self.reduction == "none":
            raise ValueError("reduction must be 'mean' or 'sum': the regulariser has no value for a row, got 'none'")
        self.alpha, self.lam = checks.number("alpha", alpha, 0.0), checks.number("lam", lam, 0.0)
        self.importance: Literal["class", "sample"] = checks.choice("importance", importance, ("class", "sample"))
        self.classes: Literal["all", "present"] = checks.choice("classes", classes, ("all", "present"))
        self.register_table("class_counts", checks.counts(class_counts))
        self.batch_group = batch_group

    def forward(self, input: Tensor, target: Tensor | MixedTarget) -> Tensor:
        """The loss of logits [N, C]; there is no form for two targets a row."""
        group = self.ranks()
        return placements.together(group, input, self._total, input, target, group)

    def _total(self, input: Tensor, target: Tensor | MixedTarget, group: Any) -> Tensor:
        if isinstance(target, MixedTarget):
            raise TypeError("target must hold class indices: LADE has no form for a MixedTarget")
        rows = (self.capped(input), target, self.class_counts)
        settings = (self.lam, self.importance, self.classes, self.alpha, self.ignore_index)
        regularizer = lade_of_ranks(group, *rows, *settings)
        return super().forward(input, target) + regularizer


Use = Literal["subtract", "regularize", "predict"]


class EstimatedOffsetLoss(WholeBatch, Loss):
    """CE(z - o) + center_weight |x - c_y|^2 + uniform_weight L_uniform(o), o_k = c_k . w_k / 2.

    The offsets that the features' class centres c imply are taken off the logits, and L_uniform = sum_k q_k log q_k,
    q = softmax(-o), keeps them even. Used by a `LinearHead(..., bias=False)`, or called with features and weights.

    Args:
        num_classes, in_features: C and d.
        center_weight, uniform_weight: the factors of the two terms, at least 0. With use="predict" there is no second
            term, and centers="autograd" needs the first.
        centers, center_rate, batch_group: of `regularizers.CenterLoss`.
        use: "subtract" takes the offsets off the logits; "regularize" leaves the logits and keeps L_uniform(o) alone
            (the paper's ablation "uniform constraint only"); "predict" trains cross-entropy with the centre loss, and
            takes the offsets off in prediction alone (`posthoc.empirical_offset` does so with the features' means).
        ignore_index: rows with this target are left out of the loss, of the centres and of their distances.

    A softcap caps the logits before the offsets are taken off, also in prediction.
    """

    no_rows = "its centres and what they add are those of the whole batch"
    own = ("use", "center_weight", "uniform_weight")
    needs_features: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        in_features: int,
        center_weight: float = 1.0,
        uniform_weight: float = 1.0,
        *,
        centers: Literal["wen", "autograd"] = "wen",
        center_rate: float = 0.5,
        use: Use = "subtract",
        batch_group: Any = "all",
        **options: Any,
    ) -> None:
        super().__init__(**(self._with(options, offset=None) if use == "subtract" else options))
        if self.reduction != "mean":
            raise ValueError(f"reduction must be 'mean': two terms are the batch's, got {self.reduction!r}")
        self.use: Use = checks.choice("use", use, get_args(Use))
        self.center_weight = checks.number("center_weight", center_weight, 0.0)
        self.uniform_weight = checks.number("uniform_weight", uniform_weight, 0.0)
        checks.number("center_rate", center_rate, 0.0, 1.0)
        if use == "predict" and centers == "autograd" and not self.center_weight:
            moved = "use='predict' and centers='autograd', where nothing else moves the centres"
            raise ValueError(f"center_weight must be above 0 with {moved}, got {center_weight!r}")
        self.center_loss = CenterLoss(
            *(num_classes, in_features, centers, center_rate), ignore_index=self.ignore_index, batch_group=batch_group
        )

    def forward(
        self, input: Tensor, target: Tensor, *, features: Tensor | None = None, linear_weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits [N, C] that came from features [N, d] and class weights [C, d]."""
        if features is None or linear_weight is None:
            raise ValueError("features and linear_weight must be given: the offset is estimated from them, got None")
        given = (input, target, features, linear_weight)
        return placements.together(self.ranks(), features, self._with_features, *given)

    def _with_features(self, input: Tensor, target: Tensor, features: Tensor, linear_weight: Tensor) -> Tensor:
        table = self.offsets(linear_weight)
        loss = self.evaluate(input, target, table=table if self.use == "subtract" else None)
        return self.total(loss, table, features, target)

    def from_features(
        self,
        features: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        sample_weight: None = None,
        **options: Any,
    ) -> Tensor:
        """The loss straight from features, as a head calls it."""
        self.unweighed(sample_weight)
        given = (features, linear_weight, target, linear_bias)
        return placements.together(self.ranks(), features, self._of_features, *given, **options)

    def _of_features(
        self,
        features: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        table = self.offsets(linear_weight)
        used = table if self.use == "subtract" else None
        loss = super().from_features(features, linear_weight, target, linear_bias, table=used, **options)
        return self.total(loss, table, features, target)

    def ranks(self) -> Any:
        """The process group that the centres are exchanged with."""
        return self.center_loss.ranks()

    def predicted_offset(self, linear_weight: Tensor) -> Tensor | None:
        """-o [C]: the offset is part of the classifier, so it also holds for prediction."""
        return None if self.use == "regularize" else self.offsets(linear_weight)

    def offsets(self, linear_weight: Tensor) -> Tensor:
        """-o [C], to be added to the logits."""
        centers = self.center_loss.centers
        if linear_weight.shape != centers.shape:
            raise ValueError(f"linear_weight must have shape {list(centers.shape)}, got {list(linear_weight.shape)}")
        return (-0.5 * centers * linear_weight).sum(1)

    def total(self, loss: Tensor, table: Tensor, features: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy with the two other terms; `table` is -o."""
        total = loss + _times(self.center_weight, self.center_loss(features, target))
        if self.use != "predict":
            total = total + _times(self.uniform_weight, negative_entropy(table))
        return total if total.dtype is loss.dtype else total.to(loss.dtype)  # where the features are of half precision


def _times(factor: float, term: Tensor) -> Tensor:
    """factor * term; a factor of 1 saves two operations."""
    return term if factor == 1 else factor * term
