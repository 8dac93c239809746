"""The quick interpreter of the tests: what kernels compute, and that the language is whole after a launch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from device import DEVICE, INTERPRETED, MARKS
from interpreter import Patches
from triton.runtime import interpreter

pytestmark = [*MARKS, pytest.mark.skipif(not INTERPRETED, reason="there is no interpreter")]


@triton.jit
def combined(x, y, operation: tl.constexpr):
    if operation == 0:
        return x + y
    if operation == 1:
        return x - y
    return x * y


@triton.jit
def combining_kernel(first, second, out, operation: tl.constexpr):
    places = tl.arange(0, 4)
    tl.store(out + places, combined(tl.load(first + places), tl.load(second + places), operation))


def test_it_is_the_quick_one() -> None:
    """Where Triton's inner names are others, the tests take longer; then `interpreter.py` has to follow."""
    assert isinstance(interpreter._patch_lang, Patches) == hasattr(interpreter, "_LangPatchScope")


def state() -> tuple[object, ...]:
    """Some of what a launch replaces."""
    return tl.arange, tl.core.arange, tl.math.exp, tl.tensor.__add__, "__bool__" in vars(tl.tensor)


@pytest.mark.parametrize("operation", range(3))
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float16], ids=str)
def test_a_launch_leaves_the_language_as_it_was(operation: int, dtype: torch.dtype) -> None:
    """Also a launch that fails."""
    one, other = (torch.tensor(values, device=DEVICE).to(dtype) for values in ([1, -5, 7, 0], [3, 2, -8, 4]))
    out, before = torch.empty_like(one), state()
    for _ in range(2):
        combining_kernel[(1,)](one, other, out, operation)
        assert torch.equal(out, (one + other, one - other, one * other)[operation])
        assert state() == before
        with pytest.raises(interpreter.InterpreterError):
            combining_kernel[(1,)](one, other, 3, operation)
        assert state() == before
