"""Problems for the GPU's row kernels, and the judge of what they find."""

from __future__ import annotations

from typing import Any

import torch
from device import DEVICE
from helpers import classes_of, generator, normal
from tolerances import TOLERANCE, error
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.rows import Inputs
from lt_kernels.core.terms import Phi, Terms

START = 3  # the first class of the shard; some targets are another's
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic."""
    return accumulate_type(dtype)


def table(kind: str | None, sizes: tuple[int, int], seed: int, dtype: torch.dtype, share: bool) -> Tensor | None:
    """An offset with absent classes, or shares with zeros, with one line, one a row or four to pick from."""
    if kind is None:
        return None
    lines = {"one": 1, "each": sizes[0], "picked": 4}[kind]
    found, few = normal(lines, sizes[1], seed=seed, dtype=dtype), torch.rand(lines, sizes[1], generator=generator(seed))
    return found.abs() * (few > 0.2) if share else found.masked_fill(few < 0.1, -torch.inf)


def inputs(
    sizes: tuple[int, int], slots: int, dtype: torch.dtype, offset: str | None, share: str | None, scaled: bool
) -> Inputs:
    """A problem with ignored rows, targets of another shard, and, for two slots, one class twice."""
    (n, c), kind = sizes, arithmetic(dtype)
    target = torch.randint(0, c + 2, (n, slots), generator=generator(1)) + START
    target[torch.rand(n, slots, generator=generator(2)) < 0.2] = -100
    if slots == 2:
        target[0, 1] = target[0, 0]
    found = Inputs(
        normal(n, c, seed=3, spread=3.0, dtype=dtype),
        target,
        1.7 if scaled else 1.0,
        normal(n, seed=4, dtype=kind) if scaled else None,
        normal(c, seed=5, dtype=kind) if scaled else None,
        table(offset, sizes, 6, kind, False),
        torch.randint(0, 4, (n,), generator=generator(7)) if "picked" in (offset, share) else None,
        table(share, sizes, 8, kind, True),
        START,
        c + 5,
        -100,
    )
    return Inputs(*(value.to(DEVICE) if isinstance(value, Tensor) else value for value in found))


def wide(values: Any) -> tuple[Any, ...]:
    """The same numbers in float64."""
    return tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values)


def judge(ours: Any, usual: Any, exact: Any, dtype: torch.dtype) -> None:
    """Our error may exceed that of the definition in the same dtype by no more than the tolerance."""
    for index, (mine, others, truth) in enumerate(zip(ours, usual, exact, strict=True)):
        assert mine.dtype == others.dtype
        assert mine.shape == others.shape
        limit = error(others, truth) + TOLERANCE[mine.dtype if mine.dtype == dtype else arithmetic(dtype)]
        assert error(mine, truth) <= limit, f"{index}: error {error(mine, truth):.2e}, limit {limit:.2e}"


def sums(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The statistics with the sums that rest is the logarithm of: near 1, where a logarithm is near 0."""
    return found[0].exp(), *found[1:]


def slopes(i: Inputs, found: tuple[Tensor, ...], grad: bool) -> tuple[Any, ...]:
    """What comes back to the statistics that were found; the offset's gradient is wanted where there is one."""
    (n, slots), kind = i.target.shape, found[0].dtype
    back = (
        found[0],
        found[4],
        normal(n, seed=11, dtype=kind),
        normal(n, slots, seed=12, dtype=kind),
        normal(n, slots, seed=13, dtype=kind) if grad else None,
        None if i.mean_weight is None else normal(n, seed=14, dtype=kind),
        normal(n, seed=15, dtype=kind) if grad else None,
        i.offset is not None,
    )
    return tuple(value.to(DEVICE) if isinstance(value, Tensor) else value for value in back)


def terms(sizes: tuple[int, int], dtype: torch.dtype, offset: str | None, smooth: str | None, **fields: Any) -> Terms:
    """Settings with a table or two; each row has a weight where its z-loss counts."""
    share = table(smooth, sizes, 8, dtype, True)
    row = torch.randint(0, 4, (sizes[0],), generator=generator(9)) if "picked" in (offset, smooth) else None
    weight = normal(sizes[1], seed=10, dtype=dtype).abs()
    total = None if share is None else share.sum(1)
    by_row = normal(sizes[0], seed=11, dtype=dtype).abs() if "z_loss" in fields else None
    found = Terms(table(offset, sizes, 6, dtype, False), row, share, total, weight, by_row, smoothing=0.1, **fields)
    return Terms(*(value.to(DEVICE) if isinstance(value, Tensor) else value for value in found))


LOSSES = [
    {"kind": Phi.PLAIN, "offset": None, "smooth": None},
    {"kind": Phi.PLAIN, "offset": "one", "smooth": None, "gamma": 2.0},
    {"kind": Phi.PLAIN, "offset": "each", "smooth": "each", "gamma": 0.5},
    {"kind": Phi.PLAIN, "offset": "picked", "smooth": "one"},
    {"kind": Phi.PLAIN, "offset": "picked", "smooth": "picked", "gamma": 1.0},
    {"kind": Phi.PLAIN, "offset": "one", "smooth": None, "z_loss": 0.2},
    {"kind": Phi.ADDITIVE, "offset": "one", "smooth": "one", "margin": 0.3, "scale": 5.0},
    {"kind": Phi.ADDITIVE, "offset": "each", "smooth": "one", "margin": 0.3, "scale": 5.0, "z_loss": 0.1, "gamma": 1.0},
    {"kind": Phi.ANGULAR, "offset": None, "smooth": "one", "margin": 0.5, "scale": 5.0, "guard": True},
    {"kind": Phi.ANGULAR, "offset": "each", "smooth": None, "margin": 0.7, "scale": 5.0, "instance": 0.9},
    {"kind": Phi.ANGULAR_ALL, "offset": "one", "smooth": None, "margin": 0.7, "scale": 5.0, "instance": 0.9},
    {"kind": Phi.SPHERE, "offset": None, "smooth": None, "margin": 4.0, "scale": 5.0},
    {"kind": Phi.SPHERE, "offset": "one", "smooth": "one", "margin": 3.0, "scale": 5.0, "instance": 1.5},
]


def problem(n: int, c: int, dtype: torch.dtype, **settings: Any) -> tuple[Tensor, Tensor, Terms]:
    """Logits, targets that are all there, some of them ignored, and the terms."""
    logits, target = normal(n, c, seed=20, spread=0.5, dtype=dtype), classes_of(n, c, seed=21)
    t = terms((n, c), arithmetic(dtype), **settings)
    if t.offset is not None:
        t.offset.index_fill_(1, target.to(DEVICE), 0.25)
    target[: n // 2 : 2] = -100
    return logits.to(DEVICE), target.to(DEVICE), t
