"""torch's own sample inputs for cross_entropy go through ours: the same values and gradients."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tolerances import TOLERANCE, error
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing._internal.common_methods_invocations import op_db

from lt_kernels.functional import offset_cross_entropy

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

(OPERATOR,) = [operator for operator in op_db if operator.name == "nn.functional.cross_entropy"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@functools.cache
def samples(dtype: torch.dtype) -> list[Any]:
    """Each of them from a seed of its own, whenever it is made; nobody writes to them."""
    return list(OPERATOR.sample_inputs("cpu", dtype, requires_grad=True))


def fresh(sample: Any, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    """Input and target as leaves of the given dtype (indices stay indices), and the options."""
    leaves = [
        tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).requires_grad_(tensor.requires_grad)
        for tensor in (sample.input, *sample.args)
    ]
    options = {key: value.to(dtype) if isinstance(value, Tensor) else value for key, value in sample.kwargs.items()}
    return leaves, options


def outcome(function: Any, sample: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Value, and the gradient of each leaf, for a fixed random cotangent."""
    leaves, options = fresh(sample, dtype)
    value = function(*leaves, **options)
    cotangent = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape).to(dtype)
    value.backward(cotangent)
    return {"value": value.detach()} | {str(i): leaf.grad for i, leaf in enumerate(leaves) if leaf.requires_grad}


def test_there_are_samples() -> None:
    """What the table below runs over: every dtype that torch gives, each with two dozen samples."""
    assert set(DTYPES) == set(OPERATOR.dtypes)
    assert all(len(samples(dtype)) > 20 for dtype in DTYPES)


@pytest.mark.parametrize("index", range(len(samples(torch.float32))))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples(dtype: torch.dtype, index: int) -> None:
    """Equal to torch in float64; elsewhere no further from float64 than torch itself."""
    sample = samples(dtype)[index]
    ours, theirs = outcome(offset_cross_entropy, sample, dtype), outcome(cross_entropy, sample, dtype)
    exact = outcome(cross_entropy, sample, torch.float64)
    assert ours.keys() == theirs.keys()
    for key, value in exact.items():
        assert ours[key].dtype == theirs[key].dtype
        assert ours[key].shape == theirs[key].shape
        assert error(ours[key], value) <= error(theirs[key], value) + TOLERANCE[dtype], key
