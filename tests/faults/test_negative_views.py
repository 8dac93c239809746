"""Tensors whose memory holds the negatives of their numbers, as the imaginary part of a conjugate does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, losses
from lt_kernels.functional import ArcFace

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

N, C, D = 6, 5, 3
TARGET, COUNTS = classes_of(N, C, 1), torch.tensor([9.0, 4.0, 3.0, 2.0, 1.0])
LOGITS, WEIGHT, FEATURES, ROWS = (
    normal(N, C, seed=2),
    normal(C, seed=3).abs(),
    normal(N, D, seed=4),
    normal(C, D, seed=5),
)
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "offset": (lambda z, w, b: functional.offset_cross_entropy(z, TARGET, w, offset=b), (LOGITS, WEIGHT, WEIGHT)),
    "smoothing": (lambda z: functional.offset_cross_entropy(z, TARGET, label_smoothing=0.2), (LOGITS,)),
    "focal": (lambda z: functional.offset_cross_entropy(z, TARGET, focal_gamma=2.0), (LOGITS,)),
    "linear": (
        lambda x, w, b, o: functional.linear_cross_entropy(x, w, TARGET, linear_bias=b, offset=o),
        (FEATURES, ROWS, WEIGHT, WEIGHT),
    ),
    "cosine": (
        lambda x, w, b: functional.cosine_margin_cross_entropy(x, w, TARGET, margin=ArcFace(0.3), offset=b),
        (FEATURES, ROWS, WEIGHT),
    ),
    "repulsion": (lambda w: functional.logit_weight_repulsion(w, threshold=0.1), (ROWS,)),
    "lade": (lambda z: functional.lade_regularizer(z, TARGET, COUNTS), (LOGITS,)),
    "loss": (lambda z: losses.LDAMLoss(COUNTS)(z, TARGET), (LOGITS.tanh(),)),
    "balanced": (lambda z: losses.BalancedSoftmaxLoss(COUNTS)(z, TARGET), (LOGITS,)),
}
PLACES = [(name, place) for name, (_, tensors) in CALLS.items() for place in range(len(tensors))]


def turned(value: Tensor) -> Tensor:
    """The same numbers, by a view of a complex tensor."""
    view = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name, place", PLACES)
def test_a_negative_view_is_read_as_its_numbers(name: str, place: int, dtype: torch.dtype) -> None:
    call, tensors = CALLS[name]
    given = [one.to(dtype) for one in tensors]
    expected = call(*given)
    found = call(*(turned(one) if i == place else one for i, one in enumerate(given)))
    assert_close(found, expected)
    leaf = turned(given[0]).requires_grad_()
    (slope,) = torch.autograd.grad(call(leaf, *given[1:]), leaf)
    plain = given[0].clone().requires_grad_()
    assert_close(slope, torch.autograd.grad(call(plain, *given[1:]), plain)[0])
