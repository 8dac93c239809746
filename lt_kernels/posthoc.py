"""Corrections of a classifier that is already trained: of its logits, or of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels import checks, priors


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
    source = _named("source_counts", source_counts)
    if not bool((source > 0).all()):
        raise ValueError(f"source_counts must be above 0 for every class, got {float(source.min())}")
    shift = -source.log()
    if target_prior is not None:
        target = _named("target_prior", target_prior)
        if target.shape != source.shape:
            raise ValueError(f"target_prior must have shape {list(source.shape)}, got {list(target.shape)}")
        shift = shift + target.log()
    return (logits + _classes(logits, "source_counts", shift)).softmax(-1).to(logits.dtype)


def _named(name: str, value: Any) -> Tensor:
    try:
        return checks.counts(value)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("class_counts", name)) from None


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
