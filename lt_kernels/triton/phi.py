"""Device functions from the statistics of a row to its loss and slopes (docs/math.md, sections 2 and 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.core import terms
from lt_kernels.triton.numbers import exp, finite, log1p, number

ADDITIVE: tl.constexpr = tl.constexpr(int(terms.Phi.ADDITIVE))
ANGULAR: tl.constexpr = tl.constexpr(int(terms.Phi.ANGULAR))
SPHERE: tl.constexpr = tl.constexpr(int(terms.Phi.SPHERE))
ANGULAR_ALL: tl.constexpr = tl.constexpr(int(terms.Phi.ANGULAR_ALL))
PI: tl.constexpr = tl.constexpr(3.141592653589793)


@triton.jit
def cosine_of(own, norm):
    """own / norm (norm may be absent) within [-1, 1]; NaN stays NaN."""
    if norm is not None:
        tiny: tl.constexpr = 2.2250738585072014e-308 if own.dtype == tl.float64 else 1.1754943508222875e-38
        own = own / tl.maximum(norm, tiny)
    return tl.where(own > 1, 1.0, tl.where(own < -1, -1.0, own))


@triton.jit
def quarter(x):
    """(sin(r), cos(r), n) of x = r + n pi / 2, |r| <= pi / 4 and |x| < 10,000, in float32.

    Cody and Waite's reduction, then the polynomials of the Cephes library (Moshier, 1989).
    """
    n = tl.floor(x * (2 / PI) + 0.5)
    r = x - n * 1.5703125 - n * 4.837512969970703e-4 - n * 7.549789948768648e-8
    s = r * r
    sine = r + r * s * (-1.6666654611e-1 + s * (8.3321608736e-3 - s * 1.9515295891e-4))
    cosine = 1 - s / 2 + s * s * (4.166664568298827e-2 + s * (2.443315711809948e-5 * s - 1.388731625493765e-3))
    return sine, cosine, n


@triton.jit
def wide_quarter(x):
    """The same in float64; the polynomials of fdlibm (Sun Microsystems, 1993)."""
    n = tl.floor(x * (2 / PI) + 0.5)
    r = x - n * 1.57079632673412561417 - n * 6.07710050650619224932e-11
    s = r * r
    sine = 2.75573137070700676789e-06 + s * (s * 1.58969099521155010221e-10 - 2.50507602534068634195e-08)
    sine = 8.33333333332248946124e-03 + s * (s * sine - 1.98412698298579493134e-04)
    cosine = s * (2.08757232129817482790e-09 - s * 1.13596475577881948265e-11) - 2.75573143513906633035e-07
    cosine = s * (2.48015872894767294178e-05 + s * cosine) - 1.38888888888741095749e-03
    cosine = 1 - s / 2 + s * s * (4.16666666666666019037e-02 + s * cosine)
    return r + r * s * (s * sine - 1.66666666666666324348e-01), cosine, n


@triton.jit
def sine_cosine(x):
    """sin(x) and cos(x) for |x| < 10,000. The library's functions need a stack, as they reduce larger angles too."""
    first, second, n = wide_quarter(x) if x.dtype == tl.float64 else quarter(x)
    quadrant = n - 4 * tl.floor(n / 4)
    odd = (quadrant == 1) | (quadrant == 3)
    sine, cosine = tl.where(odd, second, first), tl.where(odd, first, second)
    return tl.where(quadrant >= 2, -sine, sine), tl.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)


@triton.jit
def angular(own, margin, hard, instance, guard: tl.constexpr):
    """cos(theta + margin (1 + instance hard (1 - cos) / 2)) and its slope; with guard a straight line beyond pi."""
    floor: tl.constexpr = 1.4901161193847656e-08 if own.dtype == tl.float64 else 3.4526698300124393e-04
    c, eta = cosine_of(own, None), tl.where(hard, margin * instance / 2, 0.0)
    angle = margin + eta * (1 - c)
    sine = tl.sqrt((1 - c) * (1 + c))
    sin, cos = sine_cosine(angle)
    value = c * cos - sine * sin
    slope = cos + c * sin / tl.maximum(sine, floor) + (sine * cos + c * sin) * eta
    if guard:
        beyond = (c < -cos) | (angle > PI)
        value = tl.where(beyond, c - angle * sin, value)
        slope = tl.where(beyond, 1 + (sin + angle * cos) * eta, slope)
    return value, slope


@triton.jit
def chebyshev(c, order):
    """T(c) = cos(order theta), its derivative, and how many of cos(k pi / order), 0 < k < order, are larger than c.

    These are the zeros of the derivative. Its recursion is a Sturm sequence, whose number of sign changes counts them.
    """
    first, second = tl.full(c.shape, 1.0, c.dtype), c
    slope_first, slope, step = tl.zeros_like(c), tl.full(c.shape, 1.0, c.dtype), tl.zeros_like(c)
    for _ in range(1, order):
        slope_first, slope = slope, 2 * second + 2 * c * slope - slope_first
        first, second = second, 2 * c * second - first
        step += tl.where((slope_first < 0) != (slope < 0), 1.0, 0.0)
    return second, slope, step


@triton.jit
def sphere(own, order, annealing, norm):
    """norm * (lam cos(theta) + (-1)^k cos(order theta) - 2k) / (1 + lam) from own = norm * cos(theta).

    With lam the annealing; its slope, and that for the norm.
    """
    c = cosine_of(own, norm)
    value, slope, step = chebyshev(c, order)
    sign = 1 - 2 * (step - 2 * tl.floor(step / 2))
    share = 1 / (1 + annealing)
    psi, slope = share * (sign * value - 2 * step) + (1 - share) * c, share * (sign * slope) + (1 - share)
    norm_slope = tl.zeros_like(psi) if norm is None else psi - c * slope
    return psi if norm is None else norm * psi, slope, norm_slope


@triton.jit
def phi(kind: tl.constexpr, own, rival, margin, order, instance, guard: tl.constexpr, norm):
    """The target's adjusted cosine and its slopes with respect to the cosine and to the norm.

    `margin` is of each row; SphereFace's is its annealing.
    """
    value, slope, norm_slope = own, tl.full(own.shape, 1.0, own.dtype), tl.zeros_like(own)
    if kind == SPHERE:
        value, slope, norm_slope = sphere(own, order, margin, norm)
    elif kind == ANGULAR_ALL:
        value, slope = angular(own, margin, tl.full(own.shape, True, tl.int1), instance, guard)
    elif kind == ANGULAR:
        value, slope = angular(own, margin, rival > own, instance, guard)
    elif kind == ADDITIVE:
        value = own - margin
    return value, slope, norm_slope


@triton.jit
def chances(v):
    """log(1 + e^v), log(1 + e^-v), and the sizes of their slopes: 1 - p_y = 1 / (1 + e^-v) and p_y = 1 / (1 + e^v)."""
    small = exp(-tl.abs(v))
    tail, whole = log1p(small), 1 + small
    miss, hit = tl.where(v >= 0, 1.0, small) / whole, tl.where(v >= 0, small, 1.0) / whole
    return tl.maximum(v, 0.0) + tail, tl.maximum(-v, 0.0) + tail, miss, hit


@triton.jit
def target_above(u, own, own_offset, top, kind: tl.constexpr):
    """u of the target less top; NaN where u is +inf, as a softmax gives, and where a cosine is infinite."""
    u = u if own_offset is None else u + own_offset
    diverged = u == float("inf")
    if kind >= ANGULAR:
        diverged = tl.abs(own) == float("inf")
    return tl.where(diverged, float("nan"), u) - finite(top)


@triton.jit
def focal_loss(v, amount, gamma, focal: tl.constexpr):
    """amount * miss^gamma * entropy and its slope; also miss = 1 - p_y and hit = p_y, which label smoothing needs."""
    entropy, relief, miss, hit = chances(v)
    steep = miss
    if focal:
        amount = amount * exp(-relief * gamma)  # log(miss) = -relief: no power of a 0
        steep = miss + hit * tl.where(hit == 0, 0.0, entropy) * gamma
    return amount * entropy, amount * steep, miss, hit


@triton.jit
def smoothed(loss, d_v, rest, above, miss, hit, mean, total, share, part):
    """The label-smoothed loss, and its slopes for v, for the target logit, and for the mean."""
    larger = tl.where(rest > above, total * rest - share * above, (total - share) * above)
    tail = log1p(exp(-tl.abs(rest - above)))
    loss = (1 - part) * loss + part * (total * tail + larger - mean)
    d_u = -(1 - part) * d_v + part * (total * hit - share)
    return loss, (1 - part) * d_v + part * total * miss, d_u, -part


@triton.jit
def with_z_loss(loss, d_v, d_u, rest, above, top, miss, hit, z_loss, squared: tl.constexpr):
    """The loss and its slopes with z_loss times the square of the row's log-sum-exp, if there is one."""
    if squared:
        z = number(z_loss, loss.dtype)
        lse = finite(top) + tl.where(rest > above, rest, above) + log1p(exp(-tl.abs(rest - above)))
        loss, d_v, d_u = loss + z * lse * lse, d_v + 2 * z * lse * miss, d_u + 2 * z * lse * hit
    return loss, d_v, d_u


@triton.jit
def weighed(found, by_row):
    """The loss of rows and its five slopes times the rows' weights, if there are any."""
    if by_row is None:
        loss, d_rest, d_own, d_offset, d_norm, d_mean = found
    else:
        loss, d_rest, d_own = found[0] * by_row, found[1] * by_row, found[2] * by_row
        d_offset, d_norm, d_mean = found[3] * by_row, found[4] * by_row, found[5] * by_row
    return loss, d_rest, d_own, d_offset, d_norm, d_mean
