"""Where the tests of GPU kernels run: on a GPU, or by Triton's interpreter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

pytest.importorskip("triton")

from lt_kernels.ops import use_kernels
from lt_kernels.triton.launch import INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKS = [
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no CUDA device, and TRITON_INTERPRET=0"),
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),  # of numpy, in the interpreter
]


def by_triton() -> AbstractContextManager[None]:
    """The GPU's kernels."""
    return use_kernels("triton") if DEVICE == "cpu" else nullcontext()
