"""What a head's softmax takes: its logits, or its cosines times their scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type, product_type
from lt_kernels.core.terms import Phi


def has_cosines(head: Any) -> bool:
    """Whether a head's outputs are cosines."""
    return getattr(head, "classifier", "linear") == "cosine"


def classifying(head: Any) -> Any:
    """The loss of a head's logits or cosines; of a loss with a second term, the one without it."""
    loss = head.loss
    return getattr(loss, "base", getattr(loss, "classification", loss))


def scale_of(head: Any) -> float:
    """What a head's outputs are multiplied by within its softmax: the scale of its loss, or of cosines whose loss takes
    logits the head's own.
    """
    own = has_cosines(head) and head.loss.input_kind == "logits"
    return float(head.scale if own else classifying(head).scale)


def scaled(head: Any, output: Tensor, features: Tensor) -> Tensor:
    """A head's outputs [..., C] of features [..., d] as its softmax takes them, without the loss's margin and offset;
    with SphereFace the features' norms belong to them.
    """
    found, margin = output * scale_of(head), classifying(head).margin
    if margin is None or margin.kind != Phi.SPHERE:
        return found
    norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True, dtype=accumulate_type(features.dtype))
    return (found * norms.to(product_type(found))).to(found.dtype)
