"""Heads of one loss: class weights, whole or sharded over the ranks of a process group, and the loss of features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels import distributed
from lt_kernels.core import checks
from lt_kernels.core.tables import reset_loss
from lt_kernels.heads.share import misfit, share_of
from lt_kernels.losses.base import Loss
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.directions import cosines
from lt_kernels.ops.ranks import shards
from lt_kernels.ops.ranks.sampling import Sampling


class _Head(nn.Module):
    """Class weights [C, d] and a loss; with a process group, this rank's share of the classes."""

    def __init__(
        self, in_features: int, num_classes: int, loss: Loss, group: Any, sample: float | None, logq_correction: bool
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features)
        self.num_classes = checks.whole("num_classes", num_classes)
        if not isinstance(loss, Loss):
            raise TypeError(f"loss must be one of lt_kernels.losses, got {type(loss).__name__}")
        self.loss, self.share, self.sampling = loss, None, _sampling(sample, logq_correction, loss)
        if group is not None:
            loss.shardable()
            self.share = share_of(self.num_classes, group)
        first, last, _ = self.classes()
        self.weight = nn.Parameter(torch.empty(last - first, self.in_features))

    def reset_parameters(self) -> None:
        """Initialise all weights, and reset what the loss learns or gathers, for instance after `to_empty`."""
        self.draw()
        reset_loss(self.loss)

    def draw(self) -> None:
        """Draw the weights of the head itself."""
        raise NotImplementedError

    @property
    def group(self) -> Any:
        """The process group over whose ranks the classes are sharded, or None; set it again after unpickling."""
        return None if self.share is None else self.share.given()

    @group.setter
    def group(self, group: Any) -> None:
        if self.share is None:
            raise ValueError(f"group must be given when the head is made; this one has all {self.num_classes} classes")
        self.share.again(shards.checked(group))

    def classes(self) -> list[int]:
        """This head's first class, the one after its last, and the number of all."""
        return [0, self.num_classes, self.num_classes] if self.share is None else self.share.saved()

    def fill(self, values: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Fill rows [c, ...] in place; a share of the classes gets the rows that the whole would have."""
        if self.share is None:
            draw(values)
        else:
            self.share.draw(values, draw)

    def of_features(self, features: Tensor, target: Tensor | MixedTarget, **options: Any) -> Tensor:
        """The loss."""
        if self.share is None:
            return self.flattened(features, target, **options)
        return distributed.together(self.group, self.weight, self.flattened, features, target, **options)

    def flattened(self, features: Tensor, target: Tensor | MixedTarget, **options: Any) -> Tensor:
        """The loss of flattened rows of features and target; without a reduction, in the target's shape."""
        places = features.shape[:-1] if isinstance(features, Tensor) else ()
        features, target = self.flat(features, target)
        if self.share is not None and shards.shard_of(self.weight, self.group).classes != self.num_classes:
            raise ValueError(f"num_classes must be the same on every rank, got {self.num_classes} on this one")
        if self.sampling is not None and self.training:
            options["sample"] = self.sampling
        found = self.loss.from_features(features, self.weight, target, group=self.group, **options)
        return found.reshape(places) if self.loss.reduction == "none" else found

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if self.share is not None and metadata is not None:
            metadata[prefix[:-1]]["classes"] = self.classes()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        weight: Any = state_dict.get(prefix + "weight")
        saved = local_metadata.get("classes")
        if isinstance(weight, Tensor) and weight.ndim and (saved is not None or self.share is not None):
            here = str(self.share) if self.share is not None else f"all {self.num_classes} classes"
            wrong = misfit(self.classes(), saved, weight.shape[0], here)
            if wrong is not None:
                rest[-1].append(wrong)  # the messages of load_state_dict, which raises them
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def flat(self, features: Tensor, target: Tensor | MixedTarget) -> tuple[Tensor, Tensor | MixedTarget]:
        """Features [..., d] and targets [...] as rows."""
        checks.floating("features", features)
        if features.ndim == 0 or features.shape[-1] != self.in_features:
            raise ValueError(f"features must be [..., {self.in_features}], got {list(features.shape)}")
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
        share = "" if self.share is None else f", {self.share}"
        sampling = self.sampling
        if sampling is not None:
            share += f", sample={sampling.share}, logq_correction={sampling.logq}"
        return f"in_features={self.in_features}, num_classes={self.num_classes}{share}"


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

    Args:
        in_features, num_classes: d and C.
        loss: one of `lt_kernels.losses` that takes logits.
        bias: whether there is a b; `EstimatedOffsetLoss` brings its own offset and wants none.
        group: a process group over whose ranks the classes are sharded; features and targets are the same on every
            rank, and head(features) gives this rank's logits.
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
        group: Any = None,
        sample: float | None = None,
        logq_correction: bool = False,
    ) -> None:
        super().__init__(in_features, num_classes, loss, group, sample, logq_correction)
        if loss.input_kind != "logits":
            raise ValueError(f"loss must take logits, got {type(loss).__name__}, which takes cosines: use CosineHead")
        self.bias = nn.Parameter(torch.empty(self.weight.shape[0])) if checks.flag("bias", bias) else None
        self.draw()

    def draw(self) -> None:
        """Initialise weights and bias as `torch.nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        for values in (self.weight,) if self.bias is None else (self.weight, self.bias):
            self.fill(values, lambda rows: nn.init.uniform_(rows, -bound, bound))

    def forward(self, features: Tensor, target: Tensor | MixedTarget | None = None) -> Tensor:
        """The loss, or without a target the logits [..., C]."""
        if target is None:
            logits, offset = F.linear(features, self.weight, self.bias), self.loss.predicted_offset(self.weight)
            return logits if offset is None else logits + offset.to(logits.dtype)
        return self.of_features(features, target, linear_bias=self.bias)


class CosineHead(_Head):
    """Cosines and the loss of them: head(features, target) -> loss, head(features) -> cosines.

    Args:
        in_features, num_classes: d and C.
        loss: one of `lt_kernels.losses`; a margin loss brings its own scale.
        scale: what cosines are multiplied by for a loss that takes logits.
        group, sample, logq_correction: as for `LinearHead`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: Loss,
        *,
        scale: float = 30.0,
        group: Any = None,
        sample: float | None = None,
        logq_correction: bool = False,
    ) -> None:
        super().__init__(in_features, num_classes, loss, group, sample, logq_correction)
        if loss.needs_features:
            raise ValueError(
                f"loss must not estimate offsets of linear logits, got {type(loss).__name__}: use LinearHead"
            )
        self.scale = checks.number("scale", scale, above=0.0)
        self.draw()

    def draw(self) -> None:
        """Draw weights whose rows have norms of about 1."""
        self.fill(self.weight, lambda rows: nn.init.normal_(rows, std=1 / math.sqrt(self.in_features)))

    def forward(self, features: Tensor, target: Tensor | MixedTarget | None = None) -> Tensor:
        """The loss, or without a target the cosines [..., C]."""
        if target is None:
            flat = features.reshape(-1, self.in_features)
            return cosines(flat, self.weight).reshape(*features.shape[:-1], self.weight.shape[0])
        return self.of_features(features, target, cosine=True, scale=self.scale)
