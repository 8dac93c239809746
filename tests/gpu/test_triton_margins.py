"""The GPU's margins and shared numbers against their definition, on a GPU or by Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from device import DEVICE, INTERPRETED, MARKS
from helpers import classes_of, normal
from row_problems import wide
from tolerances import TOLERANCE, error
from torch import Tensor

from lt_kernels.core.terms import Phi
from lt_kernels.reference import margins as reference
from lt_kernels.triton import margins, numbers, phi
from lt_kernels.triton.launch import launch

pytestmark = MARKS
DTYPES = [torch.float32, torch.float64]


C = 7
# (kind, margin, instance, guard); SphereFace's instance is its annealing
KINDS = [
    (Phi.PLAIN, 0.0, 0.0, False),
    (Phi.ADDITIVE, 0.3, 0.0, False),
    (Phi.ANGULAR, 0.5, 0.0, False),
    (Phi.ANGULAR, 1.9, 0.8, True),
    (Phi.ANGULAR_ALL, 0.9, 1.2, False),
    (Phi.ANGULAR_ALL, 1.4, 0.8, True),
    (Phi.SPHERE, 1.0, 0.0, False),
    (Phi.SPHERE, 4.0, 0.0, False),
    (Phi.SPHERE, 7.0, 0.0, False),
    (Phi.SPHERE, 4.0, 2.5, False),
]


def problem(n: int, dtype: torch.dtype, kind: tuple[Any, ...], smooth: bool, gamma: float, tables: bool) -> list[Any]:
    """The operator's arguments; some rows are ignored."""
    code, margin, instance, guard = kind
    target = classes_of(n, C, seed=1)
    target[n // 2 :: 5] = -100
    norm = normal(n, seed=2, dtype=dtype).abs() if code == Phi.SPHERE else None
    own = normal(n, seed=3, dtype=dtype).tanh() * (1 if norm is None else norm)
    rest, top, rival = (normal(n, seed=seed, dtype=dtype, spread=spread) for seed, spread in ((4, 3), (13, 1), (5, 1)))
    vectors = [rest, top, own, rival, target]
    vectors += [normal(n, seed=6, dtype=dtype) if tables else None, norm]
    vectors += [normal(n, seed=seed, dtype=dtype).abs() if smooth else None for seed in (7, 8, 9)]
    classes = [
        normal(size, seed=seed, dtype=dtype).abs() if tables else None for size, seed in ((C, 10), (n, 14), (C, 11))
    ]
    classes.append(normal(C, seed=12, dtype=dtype).abs() / 4 if tables and smooth else None)
    found = [*vectors, *classes, 3.0, code, margin, instance, guard, gamma, 0.1, 0.2 if tables else 0.0, -100]
    return [value.to(DEVICE) if isinstance(value, Tensor) else value for value in found]


def check(given: list[Any]) -> None:
    """Loss and each slope: our error exceeds that of the definition in the same dtype by at most the tolerance."""
    found, usual, exact = margins.margins(*given), reference.margins(*given), reference.margins(*wide(given))
    assert found[1].shape == usual[1].shape
    for name, mine, others, truth in zip(
        ("loss", "d_rest", "d_own", "d_offset", "d_norm", "d_mean"),
        *((loss, *slopes) for loss, slopes in (found, usual, exact)),
        strict=True,
    ):
        assert mine.dtype == others.dtype
        assert error(mine, truth) <= error(others, truth) + TOLERANCE[mine.dtype], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_loss_and_slopes(kind: tuple[Any, ...], gamma: float, dtype: torch.dtype) -> None:
    for n, smooth, tables in ((1, False, False), (3, True, True), (300, True, False), (257, False, True)):
        check(problem(n, dtype, kind, smooth, gamma, tables))


def test_no_rows() -> None:
    loss, slopes = margins.margins(*problem(0, torch.float32, KINDS[0], True, 1.0, True))
    assert loss.shape == (0,)
    assert slopes.shape == (5, 0)


def cosines(dtype: torch.dtype) -> Tensor:
    """From -1 to 1, dense at the ends, with a little more than 1; without the ends' exact values."""
    close = torch.logspace(-14, -0.5, 60, dtype=torch.float64)
    ends = torch.tensor([0.0, 1 + 1e-7, -1 - 1e-7], dtype=torch.float64)
    return torch.cat((torch.linspace(-0.999, 0.999, 997, dtype=torch.float64), 1 - close, close - 1, ends)).to(dtype)


def alone(own: Tensor, kind: tuple[Any, ...]) -> list[Any]:
    """Arguments by which d_own is -phi' and loss is -phi: so much is missing that nothing else is left."""
    code, margin, instance, guard = kind
    zero = torch.zeros_like(own)
    vectors = [zero + 1e4, zero, own, zero + 2, torch.zeros(len(own), dtype=torch.int64, device=own.device)]
    return [*vectors, *(None,) * 9, 1.0, code, margin, instance, guard, 0.0, 0.0, 0.0, -100]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] >= Phi.ANGULAR], ids=str)
def test_slopes_of_phi(kind: tuple[Any, ...], dtype: torch.dtype) -> None:
    """Everywhere on [-1, 1] as the definition in float64, but where one of two branches that meet is chosen."""
    own = cosines(dtype).to(DEVICE)
    given = alone(own, kind)
    (_, mine), (_, exact) = margins.margins(*given), reference.margins(*wide(given))
    slope, truth = mine[1].double(), exact[1]
    sine = (1 - own.double().clamp(-1, 1) ** 2).sqrt()
    eps = torch.finfo(dtype).eps
    assert mine.isfinite().all()
    inside = sine > 2 * eps**0.5 if kind[0] != Phi.SPHERE else torch.ones_like(sine, dtype=torch.bool)
    scale = sine if kind[0] != Phi.SPHERE else torch.full_like(sine, 1 / kind[1] ** 4)  # the slopes grow so
    miss = ((slope - truth).abs() * scale)[inside]
    jump = (miss > 64 * eps).sum()  # the guard's corner, where a rounding decides
    assert jump <= (2 if kind[3] else 0), miss.max()


def of_distance(v: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """loss and slopes of plain rows with rest - own = v."""
    zero, target = torch.zeros_like(v), torch.zeros(len(v), dtype=torch.int64, device=v.device)
    numbers = (1.0, Phi.PLAIN, 0.0, 0.0, False, gamma, 0.0, 0.0, -100)
    return margins.margins(v, zero, zero, zero, target, *(None,) * 9, *numbers)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_distance(dtype: torch.dtype, gamma: float) -> None:
    """(1 - p)^gamma (-log p) and its slope from p = 0 to p = 1: relative to themselves, and never NaN."""
    v = torch.cat((torch.linspace(-80, 80, 2001), torch.tensor([-torch.inf, -1e30, 1e30]))).to(DEVICE, dtype)
    loss, slopes = of_distance(v, gamma)
    wide_v = v.double()
    entropy, miss, hit = torch.nn.functional.softplus(wide_v, threshold=1000), wide_v.sigmoid(), (-wide_v).sigmoid()
    exact = miss**gamma * entropy
    steep = miss**gamma * (miss + gamma * hit * entropy)
    limit = (1 + gamma) * (100 if dtype == torch.float32 else 400) * torch.finfo(dtype).eps
    floor = 1e-36  # where float32 has subnormal numbers the kernels have 0
    assert ((loss.double() - exact).abs() <= limit * exact + floor).all()
    assert ((slopes[0].double() - steep).abs() <= limit * steep + floor).all()
    assert (slopes[1] == -slopes[0]).all()
    loss, slopes = of_distance(torch.full_like(v[:1], torch.inf), gamma)
    assert loss == torch.inf
    assert slopes[0] == 1


def test_not_a_number_is_not_hidden() -> None:
    for kind in KINDS:
        for place in (0, 1, 2):
            given = problem(4, torch.float32, kind, False, 0.0, False)
            given[4][:] = 0
            given[place][1] = torch.nan
            loss, _ = margins.margins(*given)
            assert loss[1].isnan()
            assert loss[[0, 2, 3]].isfinite().all()


@triton.jit
def _each_kernel(out, x, size, block: tl.constexpr, which: tl.constexpr):
    place = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(x + place, mask=place < size, other=0.0)
    if which == 0:
        value = numbers.exp(value)
    elif which == 1:
        value = numbers.exp(value, False)
    elif which == 2:
        value = numbers.log1p(value)
    elif which == 3:
        value, _ = phi.sine_cosine(value)
    else:
        _, value = phi.sine_cosine(value)
    tl.store(out + place, value, mask=place < size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", range(5))
def test_shared_numbers(which: int, dtype: torch.dtype) -> None:
    """exp to some units in the last place however large its argument, log1p relative to itself, sine and cosine."""
    ends = torch.tensor([-torch.inf, torch.nan, 0.0, -0.0, -1e30, -150.0])
    x = [torch.cat((torch.linspace(-87, 20, 4001), ends)), torch.logspace(-30, 3, 4001), torch.linspace(-40, 40, 4001)]
    x = x[(0, 0, 1, 2, 2)[which]].to(DEVICE, dtype)
    exact = (torch.exp, torch.exp, torch.log1p, torch.sin, torch.cos)[which](x.double())
    found = torch.empty_like(x)
    launch(
        _each_kernel,
        (triton.cdiv(len(x), 1024),),
        {"out": found, "x": x, "size": len(x), "block": 1024, "which": which},
    )
    eps = torch.finfo(dtype).eps
    # Without a fused multiply-add, as in the interpreter, the product's rounding stays: |x| units more.
    far = eps * x.double().abs().nan_to_num(0.0) if which == 1 or (which == 0 and INTERPRETED) else 0.0
    limit = (4 * eps + far) * (1.0 if which > 2 else exact.abs()) + 1.2e-38
    same = (found == exact) | (found.isnan() & exact.isnan())
    assert (same | ((found.double() - exact).abs() <= limit)).all()
    if which < 2:
        assert found[-6] == 0
        assert found[-5].isnan()
        assert (found[-4:-2] == 1).all()
