"""What the tests of GPU kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from interpreter import quicken

from lt_kernels.triton.launch import INTERPRETED

if INTERPRETED:
    quicken()


@pytest.fixture
def tensor_float() -> Iterator[None]:
    """Let float32 products be the matrix units' (the interpreter makes them in float32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)
