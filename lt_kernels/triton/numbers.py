"""Device functions that several kernels share: exp and log1p, and the statistics of a union of classes."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def number(value, dtype: tl.constexpr):
    """A kernel's float argument in the dtype of the arithmetic, which as float64 it would make float64 too."""
    return tl.full((), value, dtype)


@triton.jit  # noqa: RET503 (in Triton 3.6 a function can return nothing, but not None)
def part(table, place, inside):
    """Numbers of a table that may be absent."""
    if table is not None:
        return tl.load(table + place, mask=inside, other=0.0)


@triton.jit
def exp(x, exact: tl.constexpr = True):
    """e^x for x <= 88; without `exact` to 1e-7 (2 + |x|) of itself in float32, enough where the input has 16 bits.

    `tl.exp` is a multiplication and an ex2.approx that keeps subnormal numbers, at four instructions. `tl.exp2` is
    one: it makes 0 of them. The product with log2 e is rounded, by |x| / 2^24 of the result at most; `exact` takes
    that back in two fused steps (an error of 3e-7 whatever x). Its clamp keeps -inf, whose rounding is no number, at 0.
    """
    if x.dtype == tl.float64:
        value = tl.exp(x)
    elif not exact:
        value = tl.exp2(x * LOG2E)
    else:
        x = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)
        power = x * LOG2E
        value = tl.exp2(power)
        value = tl.fma(value, tl.fma(power, tl.full(x.shape, -LN2, x.dtype), x), value)
    return value


@triton.jit
def times(x, y):
    """x y, rounded before anything is added to it.

    A compiler may fuse a product with the sum that it goes into, here and not there; the difference of two large
    numbers that were made alike would then be their rounding errors.
    """
    return tl.fma(x, y, tl.zeros_like(x))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, exact where 1 + x rounds."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def finite(x):
    """x, but 0 where it is -inf: what may be subtracted from another -inf."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def merge(top, total, other_top, other_total):
    """(largest, sum of exp(x - largest)) of the union of two sets."""
    both = tl.maximum(top, other_top)
    shift = finite(both)
    return both, total * exp(top - shift) + other_total * exp(other_top - shift)


@triton.jit
def log_total(total):
    """log of a sum of exp(x - largest); -inf of nothing."""
    return tl.where(total == 0, float("-inf"), tl.log(tl.where(total == 0, 1.0, total)))


@triton.jit
def log_sum(top, total):
    """The log-sum-exp that (largest, sum) stand for; -inf of nothing."""
    return finite(top) + log_total(total)
