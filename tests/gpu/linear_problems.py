"""Problems for the GPU's linear kernels, and the judge of what they find."""

from __future__ import annotations

from typing import Any

import torch
from device import DEVICE, INTERPRETED
from helpers import generator, normal
from row_problems import table, wide
from tolerances import TOLERANCE, error
from torch import Tensor

from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.reference import linear as reference

HALVES = [torch.bfloat16, torch.float16]


def problem(
    sizes: tuple[int, int, int],
    *,
    dtype: torch.dtype = torch.float32,
    normalize: int = Normalize.BOTH,
    slots: int = 1,
    bias: bool = False,
    offset: str | None = None,
    share: str | None = None,
    scale: float = 4.0,
    start: int = 0,
    others: int = 0,
    slabs: tuple[int, int] | None = None,
) -> Problem:
    """Features and classes (`others` more are elsewhere), with ignored targets, and for two slots one class twice."""
    rows, classes, size = sizes
    target = torch.randint(0, classes + others, (rows, slots), generator=generator(21))
    target[torch.rand(rows, slots, generator=generator(22)) < 0.2] = -100
    if slots == 2:
        target[0, 1] = target[0, 0]
    found = Problem(
        normal(rows, size, seed=23, spread=size**-0.5, dtype=dtype),
        normal(classes, size, seed=24, dtype=dtype),
        normal(classes, seed=25, dtype=dtype) if bias else None,
        target,
        table(offset, (rows, classes), 26, torch.float32, False),
        torch.randint(0, 4, (rows,), generator=generator(27)) if "picked" in (offset, share) else None,
        table(share, (rows, classes), 28, torch.float32, True),
        scale,
        normalize,
        start,
        classes + others,
        -100,
        *(slabs or (max(rows, 1), classes)),
    )
    return Problem(*moved(found))


def moved(values: Any) -> list[Any]:
    """The same on the device of the tests."""
    return [value.to(DEVICE) if isinstance(value, Tensor) else value for value in values]


def slopes(p: Problem) -> list[Tensor | None]:
    """What comes back to rest, own, own's offset and the mean."""
    (rows, slots), kind = p.target.shape, accumulate_type(p.input.dtype)
    found = [normal(rows, seed=41, dtype=kind), normal(rows, slots, seed=42, dtype=kind)]
    mean = None if p.mean_weight is None else normal(rows, seed=44, dtype=kind)
    return moved([*found, normal(rows, slots, seed=43, dtype=kind), mean])


def sums(found: Any) -> tuple[Tensor, ...]:
    """The statistics with the sums that rest is the logarithm of: near 1, where a logarithm is near 0."""
    return found[0].exp(), *found[1:6]


def saved(found: Any) -> tuple[Tensor, ...]:
    """What the backward pass takes of the statistics."""
    return *found[6:], found[0], found[4]


def judge(ours: Any, usual: Any, exact: Any) -> None:
    """By the interpreter, whose products are float32's: exact. On a GPU: as good as the definition in that dtype."""
    for index, (mine, others, truth) in enumerate(zip(ours, usual, exact, strict=True)):
        assert mine.dtype == others.dtype
        limit = TOLERANCE[mine.dtype] + (0.0 if INTERPRETED else error(others, truth))
        assert error(mine, truth) <= limit, f"{index}: error {error(mine, truth):.2e}, limit {limit:.2e}"


def check(module: Any, p: Problem, offset: bool = False, keep: bool = False) -> None:
    """Statistics and all gradients of `module` (the kernels under test) against the definition in float64."""
    found, usual = module.linear_forward(*p, keep), reference.linear_forward(*p, keep)
    exact = reference.linear_forward(*wide(p), False)
    judge(sums(found), sums(usual), sums(exact))
    judge(found[7:], usual[7:], exact[7:])
    assert found[6].shape == usual[6].shape
    assert found[6].dtype == usual[6].dtype
    back, wants = slopes(p), [True, True, p.bias is not None, offset]
    ours = module.linear_backward(*p, *saved(found), *back, wants)
    others = reference.linear_backward(*p, *saved(usual), *back, wants)
    truth = reference.linear_backward(*wide(p), *saved(exact), *wide(back), wants)
    judge(ours, others, truth)
