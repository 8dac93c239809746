"""Heads of one loss: class weights, whole or sharded over the ranks of a mesh, and the loss of features."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels.core import checks
from lt_kernels.core.tables import reset_loss
from lt_kernels.heads import centers as subcentres
from lt_kernels.heads import rows
from lt_kernels.heads.scale import scaled
from lt_kernels.losses.base import Loss
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.directions import cosines
from lt_kernels.ops.ranks import placements
from lt_kernels.ops.ranks.sampling import Sampling


class _Head(nn.Linear):
    """Class weights [C, d] and a loss; with a mesh, DTensors whose rows are sharded over its ranks.

    It is an `nn.Linear` so that `ColwiseParallel` takes it.
    """

    bias: Tensor | None  # type: ignore[assignment]
    classifier = "linear"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: Loss,
        bias: bool,
        mesh: Any,
        sample: float | None,
        logq_correction: bool,
        centers: int = 1,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features = checks.whole("in_features", in_features)
        self.num_classes = self.out_features = checks.whole("num_classes", num_classes)
        if not isinstance(loss, Loss):
            raise TypeError(f"loss must be one of lt_kernels.losses, got {type(loss).__name__}")
        self.loss, self.sampling = loss, _sampling(sample, logq_correction, loss)
        if mesh is not None:
            loss.shardable()
        self.weight = rows.empty((self.num_classes * centers, self.in_features), mesh)
        self.register_parameter("bias", rows.empty((self.num_classes,), mesh) if bias else None)

    def __call__(
        self, features: Tensor, target: Tensor | MixedTarget | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """The target goes by its name, since the hook of `ColwiseParallel` drops all but the first by place."""
        if target is None and sample_weight is not None:
            raise ValueError(f"sample_weight must be None without a target, got {checks.shown(sample_weight)}")
        return super().__call__(features, target=target, sample_weight=sample_weight)

    def forward(
        self, features: Tensor, target: Tensor | MixedTarget | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """The loss, or without a target what the head predicts, [..., C].

        `sample_weight` is a factor for each row, of the shape of class indices [...].
        """
        if target is not None:
            return self.of_target(features, target, sample_weight)
        self.check(features)
        return self.predicted(features)

    def predicted(self, features: Tensor) -> Tensor:
        """Logits or cosines [..., C]."""
        raise NotImplementedError

    def of_target(self, features: Tensor, target: Tensor | MixedTarget, sample_weight: Tensor | None) -> Tensor:
        """The loss."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise all weights, and reset what the loss learns or gathers, for instance after `to_empty`."""
        self.draw()
        reset_loss(self.loss)

    def draw(self) -> None:
        """Draw the weights of the head itself; a sharded head has the rows that the whole one would have."""
        raise NotImplementedError

    def scaled(self, features: Tensor) -> Tensor:
        """The logits [..., C] whose softmax gives the classes' probabilities, without the loss's margin and offset.

        Cosines are multiplied by the scale of a margin loss, or the head's own; with `SphereFaceLoss` the features'
        norms belong to it. The logits hold the prior that the loss has trained them to hold: none with balanced
        softmax, that of the training set with cross-entropy.
        """
        return scaled(self, self(features), features)

    def of_features(
        self, features: Tensor, target: Tensor | MixedTarget, sample_weight: Tensor | None, **options: Any
    ) -> Tensor:
        """The loss; an error on one rank is raised on all, if the ranks exchange anything."""
        group = placements.group_of(self.weight) if checks.is_dtensor(self.weight) else self.loss.ranks()
        given = (features, target, sample_weight)
        return placements.together(group, self.weight, self.flattened, *given, **options)

    def flattened(
        self, features: Tensor, target: Tensor | MixedTarget, sample_weight: Tensor | None, **options: Any
    ) -> Tensor:
        """The loss of flattened rows of features and target; without a reduction, in the target's shape."""
        places = features.shape[:-1] if isinstance(features, Tensor) else ()
        if sample_weight is not None:
            options["sample_weight"] = rows.flat_weights(sample_weight, places)
        features, target = self.flat(features, target)
        if self.sampling is not None and self.training:
            options["sample"] = self.sampling
        found = self.loss.from_features(features, self.weight, target, **options)
        return found.reshape(places) if self.loss.reduction == "none" else found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, own in (("weight", self.weight), ("bias", self.bias)):
            given: Any = state_dict.get(prefix + name)
            if own is None or not isinstance(given, Tensor) or given.shape != own.shape:
                continue
            if checks.is_dtensor(own) and not checks.is_dtensor(given):
                state_dict[prefix + name] = rows.loaded(given, own)
            elif checks.is_dtensor(given) and not checks.is_dtensor(own):
                rest[-1].append(  # the messages of load_state_dict, which raises them
                    f"{name} must be a plain tensor, as this head is not sharded, got a DTensor with placements "
                    f"{list(given.placements)}: give its full_tensor()"
                )
                del state_dict[prefix + name]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def check(self, features: Tensor) -> None:
        """Raise unless features are [..., d] as the class weights take them."""
        rows.check(features, self.in_features, self.weight)

    def flat(self, features: Tensor, target: Tensor | MixedTarget) -> tuple[Tensor, Tensor | MixedTarget]:
        """Features [..., d] and targets [...] as rows."""
        self.check(features)
        if features.ndim == 2:
            return features, target
        if not isinstance(target, Tensor | MixedTarget):
            raise TypeError(f"target must be a tensor or a MixedTarget, got {type(target).__name__}")
        places, flat = list(features.shape[:-1]), features.reshape(-1, self.in_features)
        given = target if isinstance(target, Tensor) else target.first
        dense = given.is_floating_point()
        if list(given.shape) != [*places, *((self.num_classes,) if dense else ())]:
            raise ValueError(f"target must have shape {places}, got {list(given.shape)}")
        if isinstance(target, Tensor):
            return flat, target.reshape(-1, self.num_classes) if dense else target.reshape(-1)
        lam = target.lam
        if isinstance(lam, Tensor) and lam.ndim == 1:  # one for each of the first dimension
            if not places or lam.shape[0] != places[0]:
                raise ValueError(f"lam must have one number for each of the {places[:1]} rows, got {list(lam.shape)}")
            lam = lam.repeat_interleave(math.prod(places[1:]))
        return flat, MixedTarget(target.first.reshape(-1), target.second.reshape(-1), lam)

    def extra_repr(self) -> str:
        placed = f", placements={list(self.weight.placements)}" if checks.is_dtensor(self.weight) else ""
        sampling = self.sampling
        chosen = "" if sampling is None else f", sample={sampling.share}, logq_correction={sampling.logq}"
        return f"in_features={self.in_features}, num_classes={self.num_classes}{placed}{chosen}"


def _sampling(sample: Any, logq_correction: Any, loss: Loss) -> Sampling | None:
    """How a head chooses classes; None for all of them."""
    logq = checks.flag("logq_correction", logq_correction)
    if sample is None:
        if logq:
            raise ValueError("logq_correction must be False without sample, got True")
        return None
    loss.sampleable()
    return Sampling(checks.number("sample", sample, 0.0, 1.0, above=0.0), logq)


class LinearHead(_Head):
    """Logits W x + b and the loss of them: head(features, target) -> loss, head(features) -> logits.

    A loss with a softcap makes it part of the model: head(features) and `scaled` are capped too, as the loss sees them.

    Args:
        in_features, num_classes: d and C.
        loss: one of `lt_kernels.losses` that takes logits.
        bias: whether there is a b; `EstimatedOffsetLoss` brings its own offset and wants none.
        mesh: a `DeviceMesh` of one dimension, over whose ranks the classes are sharded: weight and bias are DTensors,
            `Shard(0)`. Features and targets are the same on every rank, and so is the loss; head(features) is a
            DTensor that is sharded by classes, its last dimension.
        sample: the share of the classes that the loss of a training step runs over, in (0, 1] (An et al., 2021). Those
            of the batch's targets are always there; the others are drawn evenly without replacement, by one number of
            torch's generator a step. The rest get a gradient of exactly 0. None, in eval() and for prediction: all.
        logq_correction: add log((C - P) / (S - P)) to the logits of the S - P that are drawn beside P positives, so
            that the expected sum of exponentials is that of all C classes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: Loss,
        *,
        bias: bool = True,
        mesh: Any = None,
        sample: float | None = None,
        logq_correction: bool = False,
    ) -> None:
        super().__init__(in_features, num_classes, loss, checks.flag("bias", bias), mesh, sample, logq_correction)
        if loss.input_kind != "logits":
            raise ValueError(f"loss must take logits, got {type(loss).__name__}, which takes cosines: use CosineHead")
        self.draw()

    def draw(self) -> None:
        """Initialise weights and bias as `torch.nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        for values in (self.weight,) if self.bias is None else (self.weight, self.bias):
            rows.draw(values, lambda block: nn.init.uniform_(block, -bound, bound))

    def predicted(self, features: Tensor) -> Tensor:
        """The logits [..., C], capped where the loss caps them."""
        logits = placements.columns(self._logits, features, self.weight, self.bias)
        offset = self.loss.predicted_offset(self.weight)
        return logits if offset is None else logits + offset.to(logits.dtype)

    def of_target(self, features: Tensor, target: Tensor | MixedTarget, sample_weight: Tensor | None) -> Tensor:
        """The loss of the logits."""
        return self.of_features(features, target, sample_weight, linear_bias=self.bias)

    def _logits(self, features: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
        """The logits of some or all class weights, capped where the loss caps them."""
        return self.loss.capped(F.linear(features, linear_weight, linear_bias))


class CosineHead(_Head):
    """Cosines and the loss of them: head(features, target) -> loss, head(features) -> cosines.

    Args:
        in_features, num_classes: d and C.
        loss: one of `lt_kernels.losses`; a margin loss brings its own scale.
        scale: what cosines are multiplied by for a loss that takes logits.
        centers: K class weights for each class, of which the nearest counts (sub-centres, Deng et al., 2020): `weight`
            is [C K, d], the K of class 0 first, and a class's cosine is the largest of its K. In memory are the
            cosines [N, C] that are chosen and which they are, and of all [N, C K] a part within the memory budget.
        mesh, sample, logq_correction: as for `LinearHead`; with one centre alone.
    """

    classifier = "cosine"
    centers = 1  # of a head that was pickled before there were several

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: Loss,
        *,
        scale: float = 30.0,
        centers: int = 1,
        mesh: Any = None,
        sample: float | None = None,
        logq_correction: bool = False,
    ) -> None:
        several = checks.whole("centers", centers)
        if several > 1 and (mesh is not None or sample is not None):
            raise ValueError(f"centers must be 1 with mesh or sample, got {centers}")
        super().__init__(in_features, num_classes, loss, False, mesh, sample, logq_correction, several)
        loss.of_cosines()
        if loss.needs_features:
            raise ValueError(
                f"loss must not estimate offsets of linear logits, got {type(loss).__name__}: use LinearHead"
            )
        self.scale, self.centers = checks.number("scale", scale, above=0.0), several
        self.draw()

    def draw(self) -> None:
        """Draw weights whose rows have norms of about 1."""
        rows.draw(self.weight, lambda block: nn.init.normal_(block, std=1 / math.sqrt(self.in_features)))

    def predicted(self, features: Tensor) -> Tensor:
        """The cosines [..., C]."""
        if self.centers > 1:
            return subcentres.evaluate(self, features, None)
        return placements.columns(_cosines, features, self.weight)

    def of_target(self, features: Tensor, target: Tensor | MixedTarget, sample_weight: Tensor | None) -> Tensor:
        """The loss of the cosines."""
        if self.centers > 1:
            return subcentres.evaluate(self, features, target, sample_weight)
        return self.of_features(features, target, sample_weight, cosine=True, scale=self.scale)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", centers={self.centers}" if self.centers > 1 else "")


def _cosines(features: Tensor, linear_weight: Tensor, _: None = None) -> Tensor:
    """The cosines [..., C] of features [..., d] and class weights [C, d]."""
    found = cosines(features.reshape(-1, features.shape[-1]), linear_weight)
    return found.reshape(*features.shape[:-1], linear_weight.shape[0])
