"""Many incoming gradients at once: `is_grads_batched`, as vectorised Jacobians use it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional
from lt_kernels.functional import ArcFace, SphereFace

TARGET, COUNTS = classes_of(6, 8, 1), torch.arange(1.0, 9.0)
CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logits": lambda x, w: functional.offset_cross_entropy(x, TARGET),
    "linear": lambda x, w: functional.linear_cross_entropy(x, w, TARGET),
    "cosine": lambda x, w: functional.cosine_margin_cross_entropy(x, w, TARGET, margin=ArcFace(0.2)),
    "SphereFace": lambda x, w: functional.cosine_margin_cross_entropy(x, w, TARGET, margin=SphereFace(3)),
    "lade": lambda x, w: functional.lade_regularizer(x, TARGET, COUNTS),
    "repulsion": lambda x, w: functional.logit_weight_repulsion(x, threshold=0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_each_as_alone(name: str) -> None:
    """Each gradient is its incoming one times that of 1."""
    x, w = normal(6, 8, seed=1).requires_grad_(), normal(8, 8, seed=2)
    (alone,) = torch.autograd.grad(CASES[name](x, w), x)
    factors = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    (found,) = torch.autograd.grad(CASES[name](x, w), x, factors, is_grads_batched=True)
    assert_close(found, factors[:, None, None] * alone)
