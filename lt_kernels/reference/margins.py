"""From the statistics of each row to its loss and slopes: the definition (docs/math.md, sections 2 and 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core.numbers import finite
from lt_kernels.core.targets import check_places
from lt_kernels.core.terms import Phi, loss_terms


def _sine(cosine: Tensor) -> Tensor:
    return ((1 - cosine) * (1 + cosine)).clamp_min(0).sqrt()


def _angular(own: Tensor, margin: Tensor, hard: Tensor, instance: float, guard: bool) -> tuple[Tensor, Tensor]:
    """cos(theta + m_i) with m_i = m (1 + instance * hard * (1 - cos)/2), and its slope."""
    floor = torch.finfo(own.dtype).eps ** 0.5  # for sin(theta), so that the slope at +-1 stays finite
    eta = instance * margin * hard / 2  # -d m_i / d cos
    cosine = own.clamp(-1, 1)
    angle = margin + eta * (1 - cosine)
    sine = _sine(cosine)
    shifted_sine = sine * angle.cos() + cosine * angle.sin()
    phi = cosine * angle.cos() - sine * angle.sin()
    slope = angle.cos() + cosine * angle.sin() / sine.clamp_min(floor) + shifted_sine * eta
    if not guard:
        return phi, slope
    beyond = (cosine < -angle.cos()) | (angle > math.pi)  # theta + m_i > pi, where cos would rise again
    straight = cosine - angle * angle.sin()
    straight_slope = 1 + (angle.sin() + angle * angle.cos()) * eta
    return torch.where(beyond, straight, phi), torch.where(beyond, straight_slope, slope)


def _sphere(own: Tensor, order: int, annealing: Tensor, norm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """norm * (lam cos + psi) / (1 + lam) with psi = (-1)^k cos(M theta) - 2k, k = floor(M theta / pi).

    With lam the annealing; and the slopes for own and norm.
    """
    cosine = (own if norm is None else own / norm.clamp_min(torch.finfo(own.dtype).tiny)).clamp(-1, 1)
    step = (order * cosine.acos() / math.pi).floor().clamp(0, order - 1)
    sign = 1 - 2 * (step % 2)
    first, second = torch.ones_like(cosine), cosine
    slope_first, slope_second = torch.zeros_like(cosine), torch.ones_like(cosine)
    for _ in range(order - 1):  # Chebyshev: T_M(cos) = cos(M theta), and its derivative M U_(M-1)
        first, second, slope_first, slope_second = (
            second,
            2 * cosine * second - first,
            slope_second,
            2 * second + 2 * cosine * slope_second - slope_first,
        )
    share = 1 / (1 + annealing)  # of psi; the cosine has the rest, so that nothing overflows with lam
    psi = share * (sign * second - 2 * step) + (1 - share) * cosine
    slope = share * (sign * slope_second) + (1 - share)
    if norm is None:
        return psi, slope, torch.zeros_like(psi)
    return norm * psi, slope, psi - cosine * slope


def phi(
    kind: int, own: Tensor, margin: Tensor, order: int, hard: Tensor, instance: float, guard: bool, norm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The target's adjusted cosine and its slopes with respect to the cosine and to the norm; each [N].

    `margin` [N]; SphereFace's is its annealing.
    """
    if kind == Phi.SPHERE:
        return _sphere(own, order, margin, norm)
    if kind in (Phi.ANGULAR, Phi.ANGULAR_ALL):
        return *_angular(own, margin, hard, instance, guard), torch.zeros_like(own)
    value = own - margin if kind == Phi.ADDITIVE else own
    return value, torch.ones_like(own), torch.zeros_like(own)


def _per_row(table: Tensor | None, value: float, target: Tensor, like: Tensor) -> Tensor:
    """A per-class table [C] at the targets, or `value` for every row if there is none: [N]."""
    if table is None:
        return torch.full_like(like, value)
    return table[target.clamp(0, table.shape[0] - 1)]


def _diverged(own: Tensor, own_u: Tensor, kind: int) -> Tensor:
    """Where a target's logit is +inf, for which a softmax gives NaN, or its cosine infinite, which no angle has."""
    return own.abs() == torch.inf if kind >= Phi.ANGULAR else own_u == torch.inf


def _mean_entropy(v: Tensor, rest: Tensor, above: Tensor, total: Tensor, share: Tensor) -> Tensor:
    """total * (log-sum-exp of all u) - share * (the target's u), both less top, without cancellation."""
    tail = (-v.abs()).exp().log1p()
    return total * tail + torch.where(v > 0, total * rest - share * above, (total - share) * above)


def _check_offset(own_offset: Tensor | None, valid: Tensor, target: Tensor) -> None:
    if own_offset is None or own_offset.device.type != "cpu":
        return
    absent = valid & (own_offset == -torch.inf)
    if bool(absent.any()):
        raise ValueError(
            f"offset is -inf for class {int(target[absent][0])}, which is a target: "
            "a class that is not there (class_counts of zero) cannot be one"
        )


def _with_z_loss(
    loss: Tensor, rest: Tensor, above: Tensor, top: Tensor, z_loss: float
) -> tuple[Tensor, Tensor | float]:
    """The loss with the z-loss of the row's log-sum-exp, and the derivative of that by the log-sum-exp."""
    if not z_loss:
        return loss, 0.0
    lse = finite(top) + torch.maximum(rest, above) + F.softplus(-(rest - above).abs())
    return loss + z_loss * lse * lse, 2 * z_loss * lse


def margins(
    rest: Tensor,
    top: Tensor,
    own: Tensor,
    rival: Tensor,
    target: Tensor,
    own_offset: Tensor | None,
    norm: Tensor | None,
    mean: Tensor | None,
    total: Tensor | None,
    share: Tensor | None,
    *settings: object,
) -> tuple[Tensor, Tensor]:
    """loss [N], and its slopes (d_rest, d_own, d_offset, d_norm, d_mean) as [5, N], from the statistics of each row.

    The settings are the fields of `Terms` from the weight on.
    """
    t = loss_terms(*settings)
    valid = target != t.ignore_index
    for table in (t.weight, t.class_margin, t.class_smoothing):
        if table is not None:
            check_places("target", target, table.shape[0], valid)
    _check_offset(own_offset, valid, target)
    hard = torch.ones_like(own) if t.kind == Phi.ANGULAR_ALL else (rival > own).to(own.dtype)
    row_margin = _per_row(t.class_margin, t.instance if t.kind == Phi.SPHERE else t.margin, target, own)
    value, slope, norm_slope = phi(t.kind, own, row_margin, int(t.margin), hard, t.instance, t.guard, norm)
    own_u = t.scale * value if own_offset is None else t.scale * value + own_offset
    above = own_u.masked_fill(_diverged(own, own_u, t.kind), torch.nan) - finite(top)  # before anything is added to it
    v = rest - above
    entropy, miss, hit = torch.logaddexp(v, torch.zeros_like(v)), v.sigmoid(), (-v).sigmoid()
    focus = miss**t.gamma if t.gamma else torch.ones_like(miss)
    amount = _per_row(t.weight, 1.0, target, own)
    loss = amount * focus * entropy
    d_v = amount * focus * (miss + t.gamma * hit * entropy if t.gamma else miss)
    d_u, d_mean = -d_v, torch.zeros_like(v)
    if mean is not None and total is not None and share is not None:
        part = _per_row(t.class_smoothing, t.smoothing, target, own)
        loss = (1 - part) * loss + part * (_mean_entropy(v, rest, above, total, share) - mean)
        d_u = -(1 - part) * d_v + part * (total * hit - share)
        d_v = (1 - part) * d_v + part * total * miss
        d_mean = -part
    loss, steep = _with_z_loss(loss, rest, above, top, t.z_loss)
    d_v, d_u = d_v + steep * miss, d_u + steep * hit
    slopes = torch.stack((d_v, d_u * t.scale * slope, d_u, d_u * t.scale * norm_slope, d_mean))
    by_row = 1.0 if t.sample_weight is None else t.sample_weight
    return torch.where(valid, by_row * loss, 0.0), torch.where(valid, by_row * slopes, 0.0)
