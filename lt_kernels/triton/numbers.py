"""Device functions that several kernels share: exp and log1p, and the statistics of a union of classes."""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.launch import INTERPRETED

BY_INTERPRETER: tl.constexpr = tl.constexpr(INTERPRETED)
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def number(value, dtype: tl.constexpr):
    """A kernel's float64 argument in the dtype of the arithmetic; otherwise the arithmetic would become float64."""
    return tl.full((), value, dtype)


@triton.jit  # noqa: RET503 (in Triton 3.6 a function can return nothing, but not None)
def part(table, place, inside):
    """Values of a table at `place`, 0 where not `inside`; None if there is no table."""
    if table is not None:
        return tl.load(table + place, mask=inside, other=0.0)


@triton.jit
def as_stored(x, dtype: tl.constexpr):
    """Numbers in the dtype that they are stored in, rounded to nearest; the interpreter would cut bfloat16 off."""
    if BY_INTERPRETER and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def exp(x, exact: tl.constexpr = True):
    """e^x for x <= 88. Without `exact` the relative error in float32 is 1e-7 (2 + |x|), enough for inputs of 16 bits.

    `tl.exp` is a multiplication and an ex2.approx that keeps subnormal numbers, in four instructions; `tl.exp2` is one
    instruction, which flushes them to 0. The rounding of x log2(e) causes a relative error of at most |x| / 2^24.
    `exact` corrects it to 3e-7 for all x, by two fused multiply-adds. The clamp is for -inf, which they would make NaN.
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
    """x y, which the compiler cannot fuse with a following sum.

    It may do so in one place and not in another; the difference of two large numbers that should be equal would then be
    their rounding error.
    """
    return tl.fma(x, y, tl.zeros_like(x))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, also accurate for small x, where the rounding of 1 + x loses digits."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def finite(x):
    """x, and 0 for -inf, so that it can be subtracted from -inf without a NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def merge(top, total, other_top, other_total):
    """(maximum, sum of exp(x - maximum)) of the union of two sets."""
    both = tl.maximum(top, other_top)
    shift = finite(both)
    return both, total * exp(top - shift) + other_total * exp(other_top - shift)


@triton.jit
def log_total(total):
    """The logarithm of a sum of exponentials; -inf for an empty sum."""
    return tl.where(total == 0, float("-inf"), tl.log(tl.where(total == 0, 1.0, total)))


@triton.jit
def log_sum(top, total):
    """The log-sum-exp from the maximum `top` and the sum of exp(x - top); -inf for an empty sum."""
    return finite(top) + log_total(total)
