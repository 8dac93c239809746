"""Ignored rows have a gradient of exactly 0 whatever comes back to the loss, by the GPU's kernels too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import classes_of, normal
from torch import Tensor

pytest.importorskip("triton")

from lt_kernels import functional
from lt_kernels.functional import MixedTarget, SphereFace
from lt_kernels.ops import use_kernels
from lt_kernels.triton.launch import INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no CUDA device, and TRITON_INTERPRET=0"),
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),  # of numpy, in the interpreter
]
Case = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def triton() -> Iterator[None]:
    """The GPU's kernels, on a GPU or by the interpreter."""
    if DEVICE == "cuda":
        yield
        return
    with use_kernels("triton"):
        yield


CASES: dict[str, Case] = {
    "logits": lambda x, w, y: functional.offset_cross_entropy(x, y, offset=w[:, 0], label_smoothing=0.1),
    "rows": lambda x, w, y: functional.offset_cross_entropy(x, y, offset=w[:, 0], reduction="none").sum(),
    "linear": lambda x, w, y: functional.linear_cross_entropy(x, w, y, reduction="sum"),
    "SphereFace": lambda x, w, y: functional.cosine_margin_cross_entropy(x, w, y, margin=SphereFace(4)),
    "mixed": lambda x, w, y: functional.linear_cross_entropy(x, w, MixedTarget(y, y, 0.3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("every", [True, False])
def test_infinity_comes_in(name: str, every: bool) -> None:
    """Rows that are ignored, all or some, keep their 0."""
    target = classes_of(5, 7, 3)
    target[slice(None) if every else slice(1, 3)] = -100
    x, w = (normal(rows, 7, seed=rows, dtype=torch.float32).to(DEVICE).requires_grad_() for rows in (5, 7))
    value = CASES[name](x, w, target.to(DEVICE)) * torch.inf
    d_x, d_w = torch.autograd.grad(value, (x, w), allow_unused=True)
    ignored = d_x if every else d_x[1:3]
    assert bool((ignored == 0).all()), d_x
    if every:
        assert d_w is None or bool((d_w == 0).all()), d_w
    else:
        assert not bool(d_x[[0, 3, 4]].isfinite().all(1).any()), d_x
