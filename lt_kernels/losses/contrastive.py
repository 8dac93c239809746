"""Named losses of logits or cosines with a contrastive second part: BCL and GML."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels import priors
from lt_kernels.contrastive import balanced_contrastive, class_mean_cross_entropy, matrix
from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type, autocast
from lt_kernels.core.tables import TableModule
from lt_kernels.losses.base import Loss
from lt_kernels.losses.whole import WholeBatch
from lt_kernels.ops import directions
from lt_kernels.ops.ranks.dealing import Dealt


class TwoPartLoss(WholeBatch, TableModule):
    """A named loss of logits or cosines, `base`, with a second part that needs more than these.

    Args:
        base: one of `lt_kernels.losses` with reduction "mean" and no softcap.
        classification_weight: the factor of the base's loss, at least 0.
    """

    no_rows = "its second part compares rows with each other"

    def __init__(self, base: Loss, classification_weight: float) -> None:
        super().__init__()
        if not isinstance(base, Loss):
            raise TypeError(f"base must be one of lt_kernels.losses for logits or cosines, got {type(base).__name__}")
        if base.needs_features:
            raise ValueError(f"base must be a loss of logits or cosines alone, got {type(base).__name__}")
        if base.reduction != "mean":
            raise ValueError(f"base must have reduction 'mean', as the second part has, got {base.reduction!r}")
        if base.ignore_index != -100:
            raise ValueError(f"base must keep ignore_index -100: the second part has all rows, got {base.ignore_index}")
        if base.softcap is not None:
            raise ValueError(f"base must have softcap=None, since the second part has none, got {base.softcap!r}")
        self.base = base
        self.classification_weight = checks.number("classification_weight", classification_weight, 0.0)

    @property
    def input_kind(self) -> str:
        """What the base takes: "logits" or "cosine"."""
        return self.base.input_kind

    def set_weight(self, weight: Tensor | None) -> None:
        """Set or remove the base's class weights [C]: what a schedule does between epochs."""
        self.base.set_weight(weight)


class BalancedContrastiveLoss(Dealt, TwoPartLoss):
    """classification_weight L_base + contrastive_weight BalSCL (Zhu et al., 2022); with `DBMLoss`, DBM-BCL (DBM, 2025).

    BalSCL is `contrastive.balanced_contrastive`. Called with the first view's logits or cosines, target, all views and
    prototypes; `heads.BalancedContrastiveHead` makes these of features.

    Args:
        base: the classification part; `LogitAdjustmentLoss(class_counts)` is the published one.
        classification_weight, contrastive_weight: at least 0. 2, 0.6 and a temperature of 0.1 are published for CIFAR,
            1, 0.35 and 0.07 for larger sets.
        temperature: above 0.
        batch_group: the ranks whose views are keys in training (docs/distributed.md): "all", a process group, or None
            for this process alone. The value is the mean over this rank's rows.
    """

    def __init__(
        self,
        base: Loss,
        *,
        classification_weight: float = 2.0,
        contrastive_weight: float = 0.6,
        temperature: float = 0.1,
        batch_group: Any = "all",
    ) -> None:
        super().__init__(base, classification_weight)
        self.contrastive_weight = checks.number("contrastive_weight", contrastive_weight, 0.0)
        self.temperature = checks.number("temperature", temperature, above=0.0)
        self.batch_group = batch_group

    def forward(self, input: Tensor, target: Tensor, views: Tensor, prototypes: Tensor) -> Tensor:
        """The loss of the first view's input [N, C], target [N], views [V N, d] and prototypes [C, d]."""
        return self.total(self.base(input, target), target, views, prototypes)

    def total(self, classification: Tensor, target: Tensor, views: Tensor, prototypes: Tensor) -> Tensor:
        """The base's loss, a scalar, with the contrastive part."""
        settings: dict[str, Any] = {"temperature": self.temperature, "batch_group": self.ranks()}
        contrastive = balanced_contrastive(views, prototypes, target, **settings)
        return self.classification_weight * classification + self.contrastive_weight * contrastive

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"classification_weight={self.classification_weight}, contrastive_weight={self.contrastive_weight}, "
            f"temperature={self.temperature}"
        )


class GMLLoss(TwoPartLoss):
    """gamma L_base + beta (L_con + L_temperature) + alpha L_distillation (Suh and Seo, 2023); with `DBMLoss`, DBM-GML.

    With normalised queries and keys and a learnable temperature T, both contrastive terms are
    `contrastive.class_mean_cross_entropy` of q / T: L_con sees all keys and holds T, L_temperature does not see a row's
    own key and holds q and k. L_distillation is t^2 KL(softmax(teacher / t) | softmax(logits / t)), the mean over the
    rows. `heads.GMLHead` makes queries and keys.

    Args:
        base: the classification part; `LogitAdjustmentLoss(class_counts)` is the published one.
        class_counts: training samples of each class [C].
        temperature: where T starts; `log_temperature` is a parameter, and wants no weight decay.
        classification_weight, contrastive_weight, distillation_weight: gamma, beta, alpha; at least 0.
        distillation_temperature: t, above 0.
    """

    tables = ("log_prior",)

    def __init__(
        self,
        base: Loss,
        class_counts: Any,
        *,
        temperature: float = 0.1,
        classification_weight: float = 1.0,
        contrastive_weight: float = 1.0,
        distillation_weight: float = 0.0,
        distillation_temperature: float = 4.0,
    ) -> None:
        super().__init__(base, classification_weight)
        self.temperature = checks.number("temperature", temperature, above=0.0)
        self.contrastive_weight = checks.number("contrastive_weight", contrastive_weight, 0.0)
        self.distillation_weight = checks.number("distillation_weight", distillation_weight, 0.0)
        self.distillation_temperature = checks.number("distillation_temperature", distillation_temperature, above=0.0)
        # Of one entry, since FSDP does not shard a parameter without dimensions.
        self.log_temperature = nn.Parameter(torch.full((1,), math.log(self.temperature)))
        self.register_table("log_prior", priors.log_prior(class_counts))

    def reset_parameters(self) -> None:
        """Go back to the temperature that was given."""
        nn.init.constant_(self.log_temperature, math.log(self.temperature))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        query: Tensor,
        key: Tensor,
        key_class: Tensor,
        own_key: Tensor | None = None,
        *,
        teacher: Tensor | None = None,
    ) -> Tensor:
        """The loss of input [N, C], target [N], query [N, e], key [K, e], key_class [K], own_key [N]; -1 is none.

        A teacher's [N, C] are in the units of `input`; for raw cosines both are multiplied by the base's scale.
        """
        loss = self.total(self.base(input, target), target, query, key, key_class, own_key)
        return loss if teacher is None else loss + self.distillation(input, teacher)

    def total(
        self,
        classification: Tensor,
        target: Tensor,
        query: Tensor,
        key: Tensor,
        key_class: Tensor,
        own_key: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """The base's loss, a scalar, with the contrastive part; `share` may be a factor of L_temperature."""
        kind = accumulate_type(query.dtype)
        query, key = (directions.unit(matrix(name, rows).to(kind)) for name, rows in (("query", query), ("key", key)))
        colder = torch.exp(-self.log_temperature).to(kind)
        pairs = (target, key_class, self.log_prior)
        learn = class_mean_cross_entropy(query * colder.detach(), key, *pairs)
        cool = class_mean_cross_entropy(query.detach() * colder, key.detach(), *pairs, own_key)
        contrastive = (learn + (cool if share is None else share.to(kind) * cool)).to(classification.dtype)
        return self.classification_weight * classification + self.contrastive_weight * contrastive

    def distillation(self, input: Tensor, teacher: Tensor) -> Tensor:
        """distillation_weight times the divergence of the teacher's distribution from that of `input`, both [N, C]."""
        checks.same_device("teacher", checks.floating("teacher", teacher), input)
        if teacher.shape != input.shape:
            raise ValueError(f"teacher must have shape {list(input.shape)} as the input has, got {list(teacher.shape)}")
        kind, t = accumulate_type(input.dtype), self.distillation_temperature
        ours, theirs = (
            torch.log_softmax(value.to(kind) * (self.base.scale / t), 1) for value in (input, teacher.detach())
        )
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (self.distillation_weight * t * t * divergence).to(kind if autocast(input) else input.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **options: Any) -> None:
        saved = state_dict.get(prefix + "log_temperature")
        if saved is not None and saved.ndim == 0:  # an older checkpoint, where it had no dimension
            state_dict[prefix + "log_temperature"] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *rest, **options)
