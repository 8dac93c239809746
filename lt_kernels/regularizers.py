"""Terms that are added to a loss: repulsion of class weights, LADE's regulariser, even offsets, class centres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels import functional
from lt_kernels.core import checks
from lt_kernels.core.numbers import add_rows
from lt_kernels.core.tables import TableModule
from lt_kernels.functional.regularizers import reduced
from lt_kernels.ops.columns import ignored_rows
from lt_kernels.ops.neighbours import NeighbourList
from lt_kernels.ops.ranks import batches, placements
from lt_kernels.ops.ranks.columns import lade_of_ranks
from lt_kernels.ops.ranks.dealing import Dealt

__all__ = ["CenterLoss", "LADERegularizer", "LogitWeightRepulsion", "UniformOffset"]


class LogitWeightRepulsion(nn.Module):
    """`functional.logit_weight_repulsion` of the classifier's weights [C, d], to be added with a decaying factor.

    Args:
        threshold, project, reduction: of the function; `schedules.PolynomialDecay` gives the published factor.
        neighbours: "all" computes all pairs of classes in every step. "list" keeps a list of those within the
            threshold's angle plus `skin`, and makes it again when the two class weights that turned most since then
            turned by more than the skin together: no other pair can be active before (triangle inequality on the
            sphere). The result is the same, up to rounding; a step between two builds costs O(pairs d + C d).
        skin: radians, from 0 to pi. A larger one makes longer lists, less often.

    With "list" a step waits once for a GPU, to read the rotations. It goes back to all pairs where a list cannot
    serve: `status` says why. The list is no part of the state_dict: it is exact whatever its age.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        threshold: float = 0.4,
        project: bool | Literal["raw"] = True,
        reduction: Literal["none", "mean", "sum"] = "sum",
        *,
        neighbours: Literal["all", "list"] = "all",
        skin: float = 0.1,
    ) -> None:
        super().__init__()
        self.threshold = checks.number("threshold", threshold)
        self.project: bool | Literal["raw"] = checks.flag_or("project", project, "raw")
        self.reduction: Literal["none", "mean", "sum"] = checks.choice("reduction", reduction, ("none", "mean", "sum"))
        self.neighbours: Literal["all", "list"] = checks.choice("neighbours", neighbours, ("all", "list"))
        self.skin = checks.number("skin", skin, 0.0, math.pi)
        self.near = NeighbourList(self.threshold, self.skin) if neighbours == "list" else None

    @property
    def rebuilds(self) -> int:
        """How often a list was built so far, or given up because too many pairs were near."""
        return 0 if self.near is None else self.near.rebuilds

    @property
    def pairs(self) -> int:
        """How many pairs are listed now."""
        return 0 if self.near is None else self.near.pairs

    @property
    def status(self) -> str:
        """Which pairs the last call computed, and, if it was all of them in spite of neighbours="list", why."""
        return "all pairs" if self.near is None else self.near.status

    def extra_repr(self) -> str:
        """The settings, and what serves."""
        settings = f"threshold={self.threshold}, project={self.project!r}, reduction={self.reduction!r}"
        listed = "" if self.near is None else f", neighbours='list', skin={self.skin}, status={self.status!r}"
        return settings + listed

    def forward(self, linear_weight: Tensor, group: Any = None) -> Tensor:
        """R of class weights [C, d]; sharded over the ranks of a group, or as a DTensor says, always from all pairs."""
        value, sharded = None, group is not None or checks.is_dtensor(linear_weight)
        if self.near is not None and sharded:
            self.near.status = "all pairs: the class weights are sharded over ranks"
        elif self.near is not None:
            value = self.near(checks.floating("linear_weight", linear_weight), self.project)
        if value is None:
            return functional.logit_weight_repulsion(
                linear_weight, threshold=self.threshold, project=self.project, reduction=self.reduction, group=group
            )
        return reduced(value, self.reduction, linear_weight)


class LADERegularizer(Dealt, TableModule):
    """`functional.lade_regularizer` with the class counts as a buffer, in float64 (Hong et al., 2021).

    `batch_group` is that of the function, in training alone, and "all" if nothing is said.
    """

    tables = ("class_counts",)

    def __init__(
        self,
        class_counts: Any,
        lam: float = 0.1,
        *,
        importance: Literal["class", "sample"] = "class",
        classes: Literal["all", "present"] = "all",
        batch_group: Any = "all",
    ) -> None:
        super().__init__()
        self.lam = checks.number("lam", lam, 0.0)
        self.importance: Literal["class", "sample"] = checks.choice("importance", importance, ("class", "sample"))
        self.classes: Literal["all", "present"] = checks.choice("classes", classes, ("all", "present"))
        self.register_table("class_counts", checks.counts(class_counts))
        self.batch_group = batch_group

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The regulariser of logits [N, C] and class indices [N]."""
        rows = (logits, target, self.class_counts, self.lam, self.importance, self.classes)
        return lade_of_ranks(self.ranks(), *rows)


class UniformOffset(nn.Module):
    """sum_k q_k log q_k with q = softmax(-o): least, -log C, where all offsets o [C] are the same."""

    def forward(self, offset: Tensor) -> Tensor:
        """The negative entropy of offsets [C], in nats."""
        checks.floating("offset", offset)
        if offset.ndim != 1 or offset.numel() == 0:
            raise ValueError(f"offset must be 1-D with a number for each class, got shape {list(offset.shape)}")
        return negative_entropy(-offset)


def negative_entropy(logits: Tensor) -> Tensor:
    """sum_k q_k log q_k with q = softmax(logits), of logits [C]."""
    log_share = torch.log_softmax(logits, 0)
    return (log_share.exp() * log_share).sum()


class CenterLoss(Dealt, TableModule):
    """mean_i |x_i - c_{y_i}|^2, the features' distance to the centre of their class (Wen et al., 2016).

    Centres that are moved stay float32 in a model of half precision, where steps as small as theirs would be lost; the
    value is then float32 too. Centres that are a parameter are cast as every parameter is.

    Args:
        num_classes, in_features: C and d.
        centers: "wen" moves each centre towards the batch after the loss is computed in training,
            c_j -= rate sum_{y_i = j} (c_j - x_i) / (1 + N_j); "autograd" makes the centres a parameter.
        rate: in [0, 1].
        ignore_index: rows with this target have no distance and move no centre; None: there are none.
        batch_group: the ranks whose rows move the centres (docs/distributed.md): "all", a process group, or None for
            this process alone. The value is the mean over this rank's rows.
    """

    sums = ("centers",)

    def __init__(
        self,
        num_classes: int,
        in_features: int,
        centers: Literal["wen", "autograd"] = "wen",
        rate: float = 0.5,
        *,
        ignore_index: int | None = None,
        batch_group: Any = "all",
    ) -> None:
        super().__init__()
        self.batch_group = batch_group
        shape = (checks.whole("num_classes", num_classes), checks.whole("in_features", in_features))
        self.mode = checks.choice("centers", centers, ("wen", "autograd"))
        self.rate = checks.number("rate", rate, 0.0, 1.0)
        self.ignore_index = None if ignore_index is None else checks.ignored("ignore_index", ignore_index)
        if self.mode == "autograd":
            self.centers = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("centers", torch.zeros(shape))

    def extra_repr(self) -> str:
        """The settings."""
        classes, features = self.centers.shape
        return f"num_classes={classes}, in_features={features}, centers={self.mode!r}, rate={self.rate}"

    def ranks(self) -> Any:
        """The process group to exchange with now: none for centres that are a parameter."""
        return super().ranks() if self.mode == "wen" else None

    def reset_parameters(self) -> None:
        """Put all centres at the origin."""
        with torch.no_grad():
            self.centers.zero_()

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The mean squared distance of features [N, d] with class indices [N]; differences, so nothing cancels."""
        group = self.ranks()
        return placements.together(group, features, self._distance, features, target, group)

    def _distance(self, features: Tensor, target: Tensor, group: Any) -> Tensor:
        checks.floating("features", features)
        centers = self.centers
        size = centers.shape[1]
        if features.ndim != 2 or features.shape[1] != size:
            raise ValueError(f"features must be [N, {size}], got {list(features.shape)}")
        if features.device != centers.device:
            raise ValueError(f"features must be on {centers.device} as the centers are, got {features.device}")
        target = checks.indices("target", target, features.shape[:1], features)
        features = features if features.dtype is centers.dtype else features.to(centers.dtype)
        ignored = None if self.ignore_index is None else ignored_rows(target, self.ignore_index)
        target = target if ignored is None else target.masked_fill(ignored, 0)
        distance = features - _rows_of(centers, target)
        distance = distance if ignored is None else distance.masked_fill(ignored[:, None], 0.0)
        if self.training and self.mode == "wen":  # past the slow look-up of a module
            counts = distance.new_ones(len(target)) if ignored is None else (~ignored).to(distance.dtype)
            rows = (distance.detach(), target, counts)
            self._buffers["centers"] = _moved(centers, rows if group is None else _all(group, centers, rows), self.rate)
        kind = distance.dtype
        distance = distance.float() if kind is torch.float16 else distance  # squares pass 65,504 from 256 on
        rows = len(target) if ignored is None else (~ignored).sum().clamp_min(1)
        return (distance.square().sum() / rows).to(kind)


def _rows_of(centers: Tensor, target: Tensor) -> Tensor:
    """The centre of each row's class; a look-up, unlike indexing, takes no negative numbers."""
    try:
        return F.embedding(target, centers)
    except (IndexError, RuntimeError) as error:
        if target.device.type != "cpu" or not target.numel():
            raise
        least, most = (int(end) for end in target.aminmax())
        allowed = f"target must be in 0 to {centers.shape[0] - 1}, got {least} to {most}"
        raise IndexError(allowed) from error


def _all(group: Any, centers: Tensor, rows: Sequence[Tensor]) -> Sequence[Tensor]:
    """Distances, targets and counts of the rows of all ranks: mostly fewer numbers than a sum for each centre."""
    named = list(zip(("features", "target", "ignore_index"), rows, strict=True))
    return batches.gathered(group, named, [("centers", centers)])[1]


def _moved(centers: Tensor, rows: Sequence[Tensor], rate: float) -> Tensor:
    """Wen's update; a new tensor, since the old one may be needed by the backward pass."""
    distance, target, counts = rows
    total, count = torch.zeros_like(centers), centers.new_ones(centers.shape[0])  # 1 + N_j
    add_rows(total, target, distance)
    add_rows(count, target, counts)
    return torch.addcdiv(centers, total, count[:, None], value=rate)
