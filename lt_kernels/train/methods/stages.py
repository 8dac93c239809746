"""Read-outs of a trained head, and second stages: what methods do after the first stage of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels import losses, posthoc
from lt_kernels.core import checks
from lt_kernels.heads import LinearHead
from lt_kernels.train.methods.method import Closing, Options, Setting

Read = Callable[[nn.Module, Tensor], Tensor]


def compensated(setting: Setting, options: Options) -> Read:
    """Logits less tau log p: those of a balanced world."""
    return lambda head, features: posthoc.logit_adjustment(head(features), setting.class_counts, **options)


def normalized(setting: Setting, options: Options) -> Read:
    """x . w_c / |w_c|^tau, without the bias."""

    def read(head: Any, features: Tensor) -> Tensor:
        diverged = not bool(head.weight.isfinite().all())  # then the logits are no numbers, as with every method
        rows = head.weight if diverged else posthoc.tau_normalize(head.weight, **options)
        return head.loss.capped(F.linear(features, rows))

    return read


def rescaled(setting: Setting, options: Options) -> Read:
    """x . w_c / (n_c / n_max)^gamma."""
    return lambda head, features: head.loss.capped(
        F.linear(features, posthoc.rescale_by_count(head.weight, setting.class_counts, **options))
    )


def with_empirical_offset(setting: Setting, options: Options) -> Closing:
    """Replace the trained bias by -m_c . w_c / 2, with the means m_c of the training features."""

    def close(head: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        linear = _linear(head)
        with torch.no_grad():
            linear.bias.copy_(posthoc.empirical_offset(linear, pairs).bias)  # type: ignore[union-attr,arg-type]

    return close


def nearest_mean(setting: Setting, options: Options) -> Closing:
    """Replace the trained classifier by the means m_c of the training features: x . m_c / |m_c|, whose largest is that
    of the cosines, or x . m_c - |m_c|^2 / 2.
    """
    distance = checks.choice("distance", options["distance"], ("cosine", "euclidean"))

    def close(head: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        linear = _linear(head)
        made = posthoc.nearest_class_mean(pairs, num_classes=setting.num_classes, distance=distance)
        with torch.no_grad():
            linear.weight.copy_(F.normalize(made.weight) if made.bias is None else made.weight)
            linear.bias.copy_(torch.zeros_like(linear.bias) if made.bias is None else made.bias)  # type: ignore[union-attr,arg-type]

    return close


def retrained(setting: Setting, head: nn.Module, options: Options) -> tuple[nn.Module, list[nn.Parameter]]:
    """A new classifier on the frozen network."""
    fresh = LinearHead(setting.in_features, setting.num_classes, losses.CrossEntropyLoss())
    return fresh, list(fresh.parameters())


def scaled(setting: Setting, head: nn.Module, options: Options) -> tuple[nn.Module, list[nn.Parameter]]:
    """One learned number a class before the trained classifier's logits; nothing else moves."""
    module = posthoc.LearnableWeightScaling(_linear(head), **options)
    return module, [module.scale]


def smoothed(setting: Setting, head: nn.Module, options: Options) -> tuple[nn.Module, list[nn.Parameter]]:
    """Scale, class weights and bias trained on with label-aware smoothing."""
    loss = losses.LabelAwareSmoothingLoss(setting.class_counts, **options)
    module = posthoc.LearnableWeightScaling(_linear(head), loss)
    return module, list(module.parameters())


def _linear(head: nn.Module) -> LinearHead:
    if not isinstance(head, LinearHead):
        raise TypeError(f"head must be a LinearHead, got {type(head).__name__}")
    return head
