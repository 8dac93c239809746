"""The loss of several experts that learn together (docs/math.md, section 13)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels import functional
from lt_kernels.contrastive import class_indices
from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type, autocast
from lt_kernels.losses.base import Loss
from lt_kernels.losses.whole import WholeBatch
from lt_kernels.margins import DBM
from lt_kernels.reference import margins

_FLOOR = 1e-9  # added to a probability before its logarithm is taken, as published


def hard_classes(values: Tensor, target: Tensor, number: int) -> Tensor:
    """The target, then the number - 1 other classes with the largest values [N, C], the lower index first: [N, number].

    A stable sort, since `torch.topk` promises no order of equal values.
    """
    forced = values.detach().scatter(1, target[:, None], torch.inf)
    return torch.sort(forced, dim=1, descending=True, stable=True).indices[:, :number]


def mutual_divergence(logits: Tensor, copies: int = 0) -> Tensor:
    """sum_{i != j} mean_rows sum_c s_jc (log s_jc - log(s_ic + 1e-9)) of experts' logits [K, N, M], s = softmax.

    With copies above 0 the last column stands for that many classes: their log-sum-exp. The gradient reaches both
    sides. All s are held, as each expert's share of each class meets every other's.
    """
    share = torch.log_softmax(logits, 2)
    single = share
    if copies:
        single = torch.cat((share[..., :-1], share[..., -1:] - math.log(copies)), 2)
    floored = torch.logaddexp(single, torch.full_like(single, math.log(_FLOOR)))
    others = floored.sum(0) - floored
    return (share.exp() * ((len(logits) - 1) * single - others)).sum(2).mean(1).sum()


class NCLLoss(WholeBatch):
    """Cross-entropy of K experts, over all and over hard classes, and how far they diverge (Li et al., 2022).

    With b_k = z_k + log n and h_k = b_k over the hard classes (the target and the H - 1 others with the largest logits
    of expert 0),

        L = sum_k CE(b_k) + sum_k CE(h_k) + f / (K - 1) sum_{i != j} (KL(b_j | b_i) + KL(h_j | h_i)),

    where KL(a | b) = sum_c s(a)_c (log s(a)_c - log(s(b)_c + 1e-9)) with s = softmax; means over the rows. Gradients
    reach both sides of a divergence.

    Args:
        class_counts: training samples of each class [C], all above 0.
        hard_categories: H, from 1 to C; published are 30 of 100 classes, 3 of 10, 300 of 1000, 2442 of 8142.
        distillation: f, at least 0.
        unselected: the other classes in h: "zero" gives them the logit 0 (the published code), "removed" leaves them
            out of the softmax (the paper).
        margin: `functional.DBM(class_counts)` for DBM-NCL (DBM, 2025): the input is raw cosines, the margin acts on
            each expert by itself, and expert 0's raw cosines select.
        scale: what the input is multiplied by, above 0; None is 1, or 16 with a margin (as in the published code).
    """

    no_rows = "its experts' divergences are means over the rows"

    def __init__(
        self,
        class_counts: Any,
        *,
        hard_categories: int,
        distillation: float = 0.6,
        unselected: Literal["zero", "removed"] = "zero",
        margin: DBM | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        count = checks.counts(class_counts, positive=True)
        self.hard_categories = checks.whole("hard_categories", hard_categories)
        if hard_categories > count.numel():
            raise ValueError(f"hard_categories must be at most {count.numel()}, the classes, got {hard_categories}")
        self.distillation = checks.number("distillation", distillation, 0.0)
        self.unselected: Literal["zero", "removed"] = checks.choice("unselected", unselected, ("zero", "removed"))
        if margin is not None and not isinstance(margin, DBM):
            raise TypeError(f"margin must be DBM or None, got {margin!r}")
        if margin is not None and margin.per_class is not None and margin.per_class.shape != count.shape:
            raise ValueError(f"margin must have {count.numel()} class_counts, got {margin.per_class.numel()}")
        usual = 1.0 if margin is None else 16.0
        self.classification = Loss(offset=count.log(), margin=margin, scale=usual if scale is None else scale)

    @property
    def input_kind(self) -> str:
        """What the experts give: "logits", or "cosine" with a margin."""
        return "logits" if self.classification.margin is None else "cosine"

    @property
    def num_classes(self) -> int:
        """C."""
        return self.classification.offset.numel()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the experts' logits or raw cosines [K, N, C] and class indices [N]; a scalar."""
        checks.floating("input", input)
        if input.ndim != 3 or input.shape[2] != self.num_classes or 0 in input.shape:
            raise ValueError(
                f"input must be [K, N, {self.num_classes}] with K and N at least 1, got {list(input.shape)}"
            )
        experts, rows, classes = input.shape
        target = class_indices(target, classes, rows, input)
        many = target.repeat(experts)
        loss = experts * self.classification(input.reshape(-1, classes), many)
        logits = self.adjusted(input.to(accumulate_type(input.dtype)), target)
        chosen = hard_classes(input[0], target, self.hard_categories).expand(experts, -1, -1)
        hard, copies = logits.gather(2, chosen), 0
        if self.unselected == "zero" and self.hard_categories < classes:  # C - H times e^0, as one column
            copies = classes - self.hard_categories
            hard = torch.cat((hard, torch.full_like(hard[..., :1], math.log(copies))), 2)
        first = torch.zeros_like(many)  # where `hard_classes` puts the target
        loss = loss + experts * functional.offset_cross_entropy(hard.flatten(0, 1), first)
        if self.distillation and experts > 1:
            divergence = mutual_divergence(logits) + mutual_divergence(hard, copies)
            loss = loss + self.distillation / (experts - 1) * divergence
        return loss if autocast(input) else loss.to(input.dtype)

    def adjusted(self, input: Tensor, target: Tensor) -> Tensor:
        """scale * input + log n [K, N, C], with the target's cosine turned by its margin."""
        c, place = self.classification, target.expand(input.shape[0], -1)[..., None]
        if c.margin is not None:
            own = input.gather(2, place)
            rival = input.detach().scatter(2, place, -torch.inf).amax(2, keepdim=True)
            margin = c.class_margin.to(input.dtype)[target][:, None]
            settings = (margin, 0, (rival > own).to(input.dtype), c.margin.strength, c.margin.fallback, None)
            value, slope, _ = margins.phi(c.margin.kind, own.detach(), *settings)
            input = input.scatter(2, place, value + slope * (own - own.detach()))  # phi with its derivative
        return c.scale * input + c.offset.to(input.dtype)

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"hard_categories={self.hard_categories}, distillation={self.distillation}, unselected={self.unselected!r}"
        )
