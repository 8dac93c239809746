"""Corrections of a classifier that is already trained: of its logits, or of its weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lt_kernels import priors
from lt_kernels.core import checks
from lt_kernels.core.numbers import add_rows
from lt_kernels.core.targets import check_places
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.losses import CrossEntropyLoss, Loss
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.ranks import batches, placements
from lt_kernels.ops.ranks.dealing import ranks_of

__all__ = [
    "LearnableWeightScaling",
    "empirical_offset",
    "logit_adjustment",
    "nearest_class_mean",
    "pc_softmax",
    "rescale_by_count",
    "tau_normalize",
]


def _classes(logits: Tensor, name: str, vector: Tensor) -> Tensor:
    checks.floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] != len(vector):
        raise ValueError(
            f"{name} must have one number for each of the logits' classes {list(logits.shape)}, got {len(vector)}"
        )
    return vector.to(logits.device)


def logit_adjustment(logits: Tensor, class_counts: Any, tau: float = 1.0) -> Tensor:
    """z - tau log(n_c / sum n): the logits of a balanced world, from a model trained with plain cross-entropy.

    logits: [..., C], any floating dtype, which the result keeps; class_counts: [C], all above 0. Errors: ValueError or
    TypeError naming the argument (Menon et al., 2021, section 4.1).
    """
    prior = priors.log_prior(checks.counts(class_counts, positive=True), tau)
    return (logits - _classes(logits, "class_counts", prior)).to(logits.dtype)


def pc_softmax(logits: Tensor, source_counts: Any, target_prior: Any = None) -> Tensor:
    """Probabilities under another class prior, softmax(z - log p_s + log p_t), of a model trained with cross-entropy.

    logits: [..., C]; source_counts: [C], training samples of each class, all above 0; target_prior: [C], at least 0
    and in any unit (None: uniform); a class of prior 0 gets probability 0. Returns the logits' shape and dtype.
    Errors: ValueError or TypeError naming the argument (Hong et al., 2021, "post-compensated softmax").
    """
    source = checks.counts(source_counts, positive=True, name="source_counts")
    shift = -source.log()
    if target_prior is not None:
        target = checks.counts(target_prior, name="target_prior")
        if target.shape != source.shape:
            raise ValueError(f"target_prior must have shape {list(source.shape)}, got {list(target.shape)}")
        shift = shift + target.log()
    return (logits + _classes(logits, "source_counts", shift)).softmax(-1).to(logits.dtype)


def tau_normalize(linear_weight: Tensor, tau: float = 1.0) -> Tensor:
    """w_c / |w_c|^tau for every class: tau 0 leaves the rows, tau 1 makes all norms one (Kang et al., 2020).

    linear_weight: [C, d]; the logits are then x . w_c, without the bias. tau: at least 0. Errors: ValueError naming the
    first class whose row is zero (it has no direction to keep) or not finite.
    """
    checks.floating("linear_weight", linear_weight)
    if linear_weight.ndim != 2:
        raise ValueError(f"linear_weight must have shape [C, d], got {list(linear_weight.shape)}")
    norm = torch.linalg.vector_norm(linear_weight, dim=1, keepdim=True, dtype=torch.float64)
    usable = ((norm > 0) & norm.isfinite()).flatten()
    if not bool(usable.all()):
        where = int((~usable).nonzero()[0])
        raise ValueError(
            f"linear_weight must have rows of finite norm above 0, got {float(norm[where])} in row {where}"
        )
    return (linear_weight * norm.pow(-checks.number("tau", tau, 0.0))).to(linear_weight.dtype)


def rescale_by_count(linear_weight: Tensor, class_counts: Any, gamma: float = 0.5) -> Tensor:
    """w_c / (n_c / n_max)^gamma for every class: rare classes get longer rows (Kim and Kim, 2020, "RS").

    linear_weight: [C, d], trained with rows of norm one ("WVN"); class_counts: [C], all above 0; gamma: at least 0.
    The logits are then x . w_c, without a bias. Errors: ValueError or TypeError naming the argument.
    """
    checks.floating("linear_weight", linear_weight)
    counts = checks.counts(class_counts, positive=True)
    if linear_weight.ndim != 2 or len(linear_weight) != len(counts):
        raise ValueError(f"linear_weight must have shape [{len(counts)}, d], got {list(linear_weight.shape)}")
    factor = (counts / counts.max()).pow(-checks.number("gamma", gamma, 0.0)).to(linear_weight.device)
    return (linear_weight * factor[:, None]).to(linear_weight.dtype)


def empirical_offset(
    head: LinearHead,
    features: Tensor | Iterable[tuple[Tensor, Tensor]],
    target: Tensor | None = None,
    *,
    batch_group: Any = None,
) -> LinearHead:
    """A head with logits w_c . x - m_c . w_c / 2, m_c the mean training feature of class c; no prior, no training.

    The bias that the head was trained with is replaced. If the features of every class have the identity as covariance
    and w_c as mean, this is the classifier of a balanced world (Kim, Hong and Kim, section 2.2). Training with the
    offset is something else: cross-entropy then fits the class weights around it.

    Args:
        head: a trained `LinearHead`, not sharded; it is left as it is.
        features: [N, d] of the whole training set with the network in evaluation mode, with `target` [N], its class
            indices; or an iterable of such pairs, from which the means are summed up in float64 batch by batch.
        batch_group: the ranks over which the training set is dealt: a process group, "all" for all ranks of
            torch.distributed if it is initialised, or None for this process alone. Their sums are added up, and every
            rank gets the same head; a rank may have no batch.

    Returns a copy of the head with the new bias. Errors: ValueError, TypeError or, for a class that there is not,
    IndexError naming the argument; a class without a sample has no mean.
    """
    group = ranks_of(batch_group)
    like = getattr(head, "weight", None)
    return placements.together(group, like, _with_offset, head, features, target, group)


def _with_offset(head: LinearHead, features: Any, target: Tensor | None, group: Any) -> LinearHead:
    if not isinstance(head, LinearHead) or checks.is_dtensor(head.weight):
        raise TypeError(f"head must be a LinearHead that is not sharded, got {type(head).__name__}")
    weight = head.weight.detach()
    if head.loss.predicted_offset(weight) is not None:
        raise ValueError(f"head must have a loss without an offset of its own, got {type(head.loss).__name__}")
    total, count = _sums(features, target, weight)
    if group is not None:
        numbers, said = torch.cat((total.flatten(), count)), [("the class weights", weight)]
        numbers = batches.totals(group, numbers, said)
        total, count = numbers[: total.numel()].view_as(total), numbers[total.numel() :]
    made = copy.deepcopy(head)
    made.bias = nn.Parameter((-0.5 * (_means(total, count) * weight).sum(1)).to(weight.dtype))
    return made


def nearest_class_mean(
    features: Tensor | Iterable[tuple[Tensor, Tensor]],
    target: Tensor | None = None,
    *,
    num_classes: int,
    distance: Literal["cosine", "euclidean"] = "cosine",
) -> LinearHead | CosineHead:
    """A head whose largest output is the class with the nearest mean training feature m_c; no prior, no training.

    "cosine": a `CosineHead` with the class weights m_c, whose outputs are cos(x, m_c). "euclidean": a `LinearHead` with
    logits (m_c - m) . x - (|m_c|^2 - |m|^2) / 2 = (|x - m|^2 - |x - m_c|^2) / 2, m the mean of the m_c, so that a part
    that all features share takes no digits from what tells them apart. Both have cross-entropy as their loss.

    Args:
        features: [N, d] of the whole training set with the network in evaluation mode, with `target` [N], its class
            indices; or an iterable of such pairs, from which the means are summed up in float64 batch by batch. The
            head has the dtype and the device of the first.
        num_classes: C; each class needs a sample.

    Errors: ValueError, TypeError or, for a class that there is not, IndexError naming the argument (Mensink et al.,
    2013; Kang et al., 2020, "NCM").
    """
    checks.choice("distance", distance, ("cosine", "euclidean"))
    pairs = iter(_pairs(features, target))
    first = next(pairs, None)
    if first is None:
        raise ValueError("features must have at least one pair (features, target), got none")
    checks.floating("features", first[0])
    if first[0].ndim != 2:
        raise ValueError(f"features must be [N, d], got {list(first[0].shape)}")
    like = first[0].new_empty((checks.whole("num_classes", num_classes), first[0].shape[1]))
    mean = _means(*_sums(itertools.chain((first,), pairs), None, like))
    make = CosineHead if distance == "cosine" else LinearHead
    made = make(like.shape[1], num_classes, CrossEntropyLoss()).to(like)
    if made.bias is not None:
        middle = mean.mean(0)
        made.bias = nn.Parameter((-0.5 * (mean - middle) * (mean + middle)).sum(1).to(like.dtype))
        mean = mean - middle
    made.weight = nn.Parameter(mean.to(like.dtype))
    return made


def _means(total: Tensor, count: Tensor) -> Tensor:
    if not bool((count > 0).all()):
        raise ValueError(f"target must have a sample of every class, got none of {int((count == 0).nonzero()[0])}")
    return total / count[:, None]


def _sums(features: Any, target: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the features of each class [C, d], and the number of its samples [C]; float64."""
    total = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    count = total.new_zeros(len(weight))
    for values, classes in _pairs(features, target):
        checks.floating("features", values)
        if values.ndim != 2 or values.shape[1] != weight.shape[1]:
            raise ValueError(f"features must be [N, {weight.shape[1]}], got {list(values.shape)}")
        classes = checks.indices("target", classes, values.shape[:1], values).to(weight.device)
        check_places("target", classes, len(weight))
        add_rows(total, classes, values.detach().to(weight.device, torch.float64))
        add_rows(count, classes, count.new_ones(len(classes)))
    return total, count


def _pairs(features: Any, target: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(features, Tensor):
        if target is None:
            raise ValueError("target must be given with a tensor of features, got None")
        yield features, target
        return
    if target is not None:
        raise ValueError("target must be None if features is an iterable of pairs (features, target)")
    pairs = "features must be a tensor or an iterable of pairs (features, target)"
    if not isinstance(features, Iterable):
        raise TypeError(f"{pairs}, got {type(features).__name__}")
    for pair in features:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            what = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, tuple | list) else type(pair).__name__
            raise TypeError(f"{pairs}, got a {what} in it")
        yield pair[0], pair[1]


class LearnableWeightScaling(nn.Module):
    """Logits s_c (w_c . x + b_c) of a trained head, one learned number s_c a class (Kang et al., 2020, "LWS").

    `scale` [C] starts at one and is the only parameter that is meant to be trained; the head's rows and bias are those
    of `head`, in whose place this module stands: module(features, target) -> loss, module(features) -> logits. The
    loss is evaluated from features, so no more logits are held than by the head.

    Args:
        head: a `LinearHead`, not sharded.
        loss: one of `lt_kernels.losses` for the second stage, or None for the head's own.
        scaled: what s_c multiplies, "logits" or "weight" alone (the bias is left, if there is one).
    """

    def __init__(
        self, head: LinearHead, loss: Loss | None = None, *, scaled: Literal["logits", "weight"] = "logits"
    ) -> None:
        super().__init__()
        if not isinstance(head, LinearHead) or checks.is_dtensor(head.weight):
            raise TypeError(f"head must be a LinearHead that is not sharded, got {type(head).__name__}")
        self.scaled: Literal["logits", "weight"] = checks.choice("scaled", scaled, ("logits", "weight"))
        if loss is not None and (not isinstance(loss, Loss) or loss.input_kind != "logits"):
            raise TypeError(f"loss must be one of lt_kernels.losses for logits, or None, got {type(loss).__name__}")
        self.head, self.loss = head, head.loss if loss is None else loss
        self.scale = nn.Parameter(torch.ones_like(head.weight[:, 0]))

    def reset_parameters(self) -> None:
        """Put all scales back to one; the head is left as it is."""
        nn.init.ones_(self.scale)

    @property
    def weight(self) -> Tensor:
        """The scaled rows s_c w_c [C, d]."""
        return self.scale[:, None] * self.head.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias [C] that goes with `weight`, or None."""
        if self.head.bias is None or self.scaled == "weight":
            return self.head.bias
        return self.scale * self.head.bias

    def forward(self, features: Tensor, target: Tensor | MixedTarget | None = None) -> Tensor:
        """The loss of features [..., d], or without a target the logits [..., C]."""
        if target is None:
            self.head.check(features)
            weight = self.weight
            logits = self.loss.capped(nn.functional.linear(features, weight, self.bias))
            offset = self.loss.predicted_offset(weight)
            return logits if offset is None else logits + offset.to(logits.dtype)
        features, target = self.head.flat(features, target)
        return self.loss.from_features(features, self.weight, target, self.bias)
