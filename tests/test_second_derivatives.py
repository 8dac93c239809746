"""Second derivatives of plain losses on a CPU, which take the short ways (tests/test_short_ways.py)."""

from __future__ import annotations

import pytest
import torch
from helpers import classes_of, normal

from lt_kernels.functional import offset_cross_entropy
from lt_kernels.ops import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
N, C = 6, 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_second_derivatives_are_those_of_the_dense_formula(smoothing, reduction):
    logits, target = normal(N, C, seed=1).requires_grad_(), classes_of(N, C, 2)
    tables = {"weight": normal(C, seed=3).abs(), "offset": normal(C, seed=4)}
    settings = {"label_smoothing": smoothing, "reduction": reduction, **tables}
    torch.autograd.gradgradcheck(lambda z: offset_cross_entropy(z, target, **settings), logits)
    if not smoothing:
        target[1] = -100
        torch.autograd.gradgradcheck(lambda z: offset_cross_entropy(z, target, **settings), logits)
