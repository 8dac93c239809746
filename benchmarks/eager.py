"""The competitor: each operator and loss in plain torch, dense, as people write it in their training code.

In float64 the same functions are the truth that every result is checked against.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAMBDA = 0.1
THRESHOLD = 0.4


def offset_cross_entropy(logits: Tensor, target: Tensor, offset: Tensor) -> Tensor:
    """F.cross_entropy of the logits plus the offset [C]."""
    return F.cross_entropy(logits + offset, target)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """F.cross_entropy itself."""
    return F.cross_entropy(logits, target)


def linear_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    """F.cross_entropy of all logits [N, C]."""
    return F.cross_entropy(F.linear(input, linear_weight), target)


def cosine_margin_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    """ArcFace with margin 0.5 and scale 30."""
    return arcface(F.linear(F.normalize(input), F.normalize(linear_weight)), target, scale=30.0)


def logit_weight_repulsion(linear_weight: Tensor) -> Tensor:
    """sum_i log sum_j exp(1[s_ij > 0.4] s_ij) - s_ii over all C x C cosines."""
    unit = F.normalize(linear_weight)
    similarity = unit @ unit.T
    active = torch.where(similarity > THRESHOLD, similarity, 0.0)
    return (active.logsumexp(1) - active.diagonal()).sum()


def lade_regularizer(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """sum_c p_c (-A_c + B_c + 0.1 B_c^2)."""
    prior = (class_counts / class_counts.sum()).to(logits.dtype)
    member = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    own = (logits * member).sum(0) / (member.sum(0) + 1e-8)
    uniform = math.log(1 / logits.shape[1] + 1e-9)
    bound = logits.logsumexp(0) - math.log(len(logits)) - (prior + 1e-9).log() + uniform
    return (prior * (-own + bound + LAMBDA * bound**2)).sum()


def own_entry(cosine: Tensor, target: Tensor) -> Tensor:
    """The target's entry of each row, [N]."""
    return cosine.gather(1, target[:, None])[:, 0]


def with_own(cosine: Tensor, target: Tensor, own: Tensor, scale: float, offset: Tensor | None = None) -> Tensor:
    """Cross-entropy of the scaled cosines, plus an offset [C], with the target's entry replaced."""
    logits = scale * cosine.scatter(1, target[:, None], own[:, None])
    return F.cross_entropy(logits if offset is None else logits + offset, target)


def arcface(cosine: Tensor, target: Tensor, scale: float = 64.0, margin: float = 0.5) -> Tensor:
    """cos(theta + m), and cos(theta) - m sin(m) past pi."""
    own = own_entry(cosine, target)
    theta = own.acos()
    guarded = torch.where(theta + margin <= math.pi, torch.cos(theta + margin), own - margin * math.sin(margin))
    return with_own(cosine, target, guarded, scale)


def cosface(cosine: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """cos(theta) - 0.35, scale 64."""
    return with_own(cosine, target, own_entry(cosine, target) - 0.35, 64.0)


def sphereface(cosine: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """(-1)^k cos(4 theta) - 2k."""
    theta = own_entry(cosine, target).acos()
    branch = (4 * theta / math.pi).floor().detach()
    return with_own(cosine, target, (1 - 2 * (branch % 2)) * torch.cos(4 * theta) - 2 * branch, 1.0)


def ldam(cosine: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """cos(theta) - m_y, m_y proportional to n_y^(-1/4) and at most 0.5, scale 30."""
    margin = class_counts.pow(-0.25)
    margin = (0.5 * margin / margin.max()).to(cosine.dtype)
    return with_own(cosine, target, own_entry(cosine, target) - margin[target], 30.0)


def dbm(cosine: Tensor, target: Tensor, class_counts: Tensor, offset: Tensor | None = None) -> Tensor:
    """cos(theta + m_y (1 + h (1 - cos) / 2)), h where the row is misclassified."""
    own = own_entry(cosine, target)
    margin = (0.1 * (class_counts / class_counts.min()).pow(-1)).to(cosine.dtype)
    hard = (cosine.argmax(1) != target).to(cosine.dtype)
    angle = margin[target] * (1 + hard * (1 - own) / 2)
    return with_own(cosine, target, torch.cos(own.acos() + angle), 30.0, offset)


def balanced_softmax(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """F.cross_entropy of the logits plus the log prior."""
    return F.cross_entropy(logits + (class_counts / class_counts.sum()).log(), target)


def lade(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """Balanced softmax and 0.1 times the regulariser."""
    return balanced_softmax(logits, target, class_counts) + LAMBDA * lade_regularizer(logits, target, class_counts)


def focal(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """(1 - p)^2 (-log p)."""
    entropy = F.cross_entropy(logits, target, reduction="none")
    return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()


def class_balanced(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """Weights (1 - beta) / (1 - beta^n), beta 0.9999."""
    weight = -1 / torch.expm1(class_counts * math.log(0.9999))
    weight = weight * len(weight) / weight.sum()
    return F.cross_entropy(logits, target, weight=weight.to(logits.dtype))


def label_aware_smoothing(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """(1 - eps_y) CE - eps_y mean_c log p_c, eps_y = 0.3 sin(pi r / 2)."""
    rank = (class_counts - class_counts.min()) / (class_counts.max() - class_counts.min())
    smoothing = (0.3 * torch.sin(math.pi / 2 * rank))[target]
    logarithm = logits.log_softmax(1)
    return (-(1 - smoothing) * own_entry(logarithm, target) - smoothing * logarithm.mean(1)).mean()


class EstimatedOffset:
    """CE(z - o) + |x - c_y|^2 + sum q log q, o = c.w / 2, q = softmax(-o); the centres move with each batch."""

    def __init__(self, centers: Tensor) -> None:
        self.centers = centers

    def __call__(self, input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
        """The loss of features [N, d] and class weights [C, d]."""
        offset = 0.5 * (self.centers * linear_weight).sum(1)
        distance = input - self.centers[target]
        self.move(distance.detach(), target)
        share = (-offset).log_softmax(0)
        uniform = (share.exp() * share).sum()
        entropy = F.cross_entropy(F.linear(input, linear_weight) - offset, target)
        return entropy + distance.square().sum(1).mean() + uniform

    def move(self, distance: Tensor, target: Tensor) -> None:
        """c_j += sum_{y_i = j} (x_i - c_j) / 2 (1 + N_j)."""
        total = torch.zeros_like(self.centers).index_add(0, target, distance)
        count = target.bincount(minlength=len(total)).to(total.dtype)
        self.centers = self.centers + 0.5 * total / (1 + count)[:, None]


class Head(nn.Module):
    """The head's parameters under the loss as it is written in plain torch, over all logits."""

    def __init__(self, head: Any, method: str, class_counts: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, getattr(head, "bias", None)
        self.method = method.removesuffix("-lwr")
        self.register_buffer("counts", class_counts.double(), persistent=False)
        prior = (self.counts / self.counts.sum()).log().float()
        self.register_buffer("offset", None if method in ("ce", "arcface") else prior, persistent=False)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss of features [N, d]."""
        if self.method in ("ce", "bs", "la"):
            logits = F.linear(features, self.weight, self.bias)
            return F.cross_entropy(logits if self.offset is None else logits + self.offset, target)
        cosine = F.linear(F.normalize(features), F.normalize(self.weight))
        if self.method == "arcface":
            return arcface(cosine, target)
        return dbm(cosine, target, self.counts, offset=self.offset)


class Repulsion(nn.Module):
    """All C x C cosines."""

    def forward(self, linear_weight: Tensor) -> Tensor:
        """R of class weights [C, d]."""
        return logit_weight_repulsion(linear_weight)
