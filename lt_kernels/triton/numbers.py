"""Device functions that several kernels share: exp and log1p, and the statistics of a union of classes."""

from __future__ import annotations

import triton
import triton.language as tl


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
    return both, total * tl.exp(top - shift) + other_total * tl.exp(other_top - shift)


@triton.jit
def log_sum(top, total):
    """The log-sum-exp that (largest, sum) stand for; -inf of nothing."""
    return tl.where(total == 0, float("-inf"), finite(top) + tl.log(tl.where(total == 0, 1.0, total)))
