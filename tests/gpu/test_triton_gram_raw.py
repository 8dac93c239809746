"""The GPU kernels of the repulsion on products that are large; tests/gpu/test_triton_gram.py has all others."""

from __future__ import annotations

import torch
from class_weights import similar
from device import DEVICE
from tolerances import assert_close

from lt_kernels.reference import gram as reference
from lt_kernels.triton import gram


def test_raw_products_of_long_rows() -> None:
    """The list holds the products; of rows that are 30 long they are 900, which exp cannot hold."""
    weight = 30 * torch.nn.functional.normalize(similar(24, 40, 0.4, torch.float32), dim=1)
    total, _, first, second, value, count, _ = gram.gram_forward(weight.to(DEVICE), 0.4, True)
    assert (total.cpu() - reference.gram_forward(weight.double(), 0.4, True)[0]).abs().max() <= 900 * 1e-6
    pairs = (one[: int(count)].cpu().long() for one in (first, second))
    assert_close(value[: int(count)].cpu(), (weight.double() @ weight.double().T)[tuple(pairs)], torch.float32)
