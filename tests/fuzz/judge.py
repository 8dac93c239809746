"""The judge: every formula dense and in float64, with autograd's own gradients. It knows nothing of the package.

A row's loss is taken from v, the logarithm of the odds against its target (docs/math.md, sections 1 and 2), after the
row's largest logit was taken off, so that no digits are lost at any shift. Rows that do not count are left out before
anything is computed, so that their gradient is exactly 0 whatever they hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

INF = math.inf


@dataclass
class Spec:
    """What a cross-entropy is made of; tables are float64, a class each."""

    scale: float = 1.0
    phi: str = "plain"  # or "additive", "angular", "sphere"
    margin: Any = 0.0  # a number, or one for each class
    instance: float = 0.0
    every: bool = False  # the instance margin is that of every row, not of the hard ones
    annealing: float = 0.0
    guard: bool = False
    weight: Tensor | None = None
    gamma: float = 0.0
    smoothing: float | Tensor = 0.0
    z_loss: float = 0.0
    by_row: Tensor | None = None  # a weight for each flat row
    ignore: int = -100
    reduction: str = "mean"
    average: str = "weighted"


def of_class(value: Any, target: Tensor, like: Tensor) -> Tensor:
    """A number for each row: its class's, or the one for all."""
    if isinstance(value, Tensor):
        return value[target]
    return torch.full_like(like, value)


def turned(own: Tensor, rival: Tensor, target: Tensor, spec: Spec, norm: Tensor | None) -> Tensor:
    """phi(cos) of the target's cosine; |x| psi for SphereFace, whose `own` is |x| cos (sections 4)."""
    margin = of_class(spec.margin, target, own)
    if spec.phi == "additive":
        return own - margin
    if spec.phi == "angular":
        hard = torch.ones_like(own) if spec.every else (rival > own).to(own.dtype).detach()
        angle = margin * (1 + spec.instance * hard * (1 - own) / 2)
        sine = ((1 - own) * (1 + own)).clamp_min(0).sqrt()
        value = own * angle.cos() - sine * angle.sin()
        return torch.where(own < -angle.cos(), own - angle * angle.sin(), value) if spec.guard else value
    if spec.phi == "sphere":
        long = torch.ones_like(own) if norm is None else norm
        cosine = own / torch.where(long > 0, long, 1.0)
        # Torch's clamp keeps a NaN, but has slope 0 there; the slope of what is no number is none either.
        theta = torch.where(cosine.isnan(), cosine, cosine.clamp(-1, 1)).acos()
        step = (margin * theta / math.pi).floor().detach()
        psi = (1 - 2 * (step % 2)) * torch.cos(margin * theta) - 2 * step
        return long * (spec.annealing * theta.cos() + psi) / (1 + spec.annealing)
    return own


def adjusted(z: Tensor, target: Tensor, offset: Tensor, spec: Spec, norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """What enters the softmax [R, C], less a number of each row [R]; the target's has its margin."""
    chosen = F.one_hot(target, z.shape[1]).bool()
    own, rival = z[chosen], z.masked_fill(chosen | (offset == -INF), -INF).amax(1)
    top = z.masked_fill(offset == -INF, -INF).amax(1).detach()
    top = torch.where(top.isfinite(), top, 0.0)[:, None]
    if spec.phi == "plain":
        return spec.scale * (z - top) + offset, spec.scale * top[:, 0]
    value = turned(own, rival, target, spec, norm)
    return spec.scale * (torch.where(chosen, value[:, None], z) - top) + offset, spec.scale * top[:, 0]


def rows_loss(z: Tensor, target: Tensor, offset: Tensor, spec: Spec, norm: Tensor | None = None) -> Tensor:
    """(1 - e) w_y (1 - p_y)^gamma (-log p_y) + e / K sum_c w_c (-log p_c) of each row that counts."""
    if not len(z):
        return z.sum(1)
    u, taken = adjusted(z, target, offset, spec, norm)
    chosen, there = F.one_hot(target, z.shape[1]).bool(), offset != -INF
    weight = torch.ones_like(z[0]) if spec.weight is None else spec.weight
    others = u.masked_fill(chosen, -INF)
    alone = (others == -INF).all(1)
    rest = torch.where(alone[:, None], 0.0, others).logsumexp(1)
    v = torch.where(alone, 0.0, rest - u[chosen])
    focal = torch.exp(spec.gamma * F.logsigmoid(v)) if spec.gamma else 1.0
    first = torch.where(alone, 0.0 * u[chosen], weight[target] * focal * -F.logsigmoid(-v))
    eps = of_class(spec.smoothing, target, first)
    if isinstance(spec.smoothing, Tensor) or spec.smoothing:
        log_p = torch.where(there, torch.log_softmax(u, 1), 0.0)
        uniform = -torch.where(weight != 0, weight * log_p, 0.0).sum(1) / there.sum(1)  # 0 log 0 is 0
        first = (1 - eps) * first + torch.where(eps > 0, eps * uniform, 0.0)
    if spec.z_loss:
        first = first + spec.z_loss * (u.logsumexp(1) + taken) ** 2
    return first * torch.where((u == INF).any(1), math.nan, 1.0)  # as torch has it: inf - inf


def kept_rows(z: Tensor, target: Tensor, offset: Tensor, spec: Spec, norm: Tensor | None) -> Tensor:
    """The loss of each row, 0 for those that do not count."""
    kept = (target != spec.ignore).nonzero()[:, 0]
    part = rows_loss(z[kept], target[kept], offset[kept], spec, None if norm is None else norm[kept])
    part = part if spec.by_row is None else part * spec.by_row[kept]
    return torch.zeros_like(z[:, 0]).index_put((kept,), part)


def reduced(loss: Tensor, target: Tensor, spec: Spec) -> Tensor:
    """One number a row, their sum, or their mean over the weights (or the number) of those that count."""
    if spec.reduction == "none":
        return loss
    if spec.reduction == "sum":
        return loss.sum()
    kept = target[target != spec.ignore]
    weights = spec.weight[kept] if spec.weight is not None and spec.average == "weighted" else torch.ones_like(kept)
    weights = weights.to(loss.dtype)
    weights = weights if spec.by_row is None else weights * spec.by_row[target != spec.ignore]
    return loss.sum() / weights.sum()


def spread_offset(offset: Tensor | None, form: str, target: Tensor, z: Tensor) -> Tensor:
    """The offset of each row [N, C]: the same for all, the row's own, or that of its target's class."""
    if offset is None:
        return torch.zeros_like(z)
    if form == "target":
        classes = offset.shape[-1]
        return offset.reshape(classes, classes)[target.clamp(0, classes - 1)]
    return (offset.reshape(1, -1) if form == "class" else offset).expand(z.shape)


def cross_entropy(
    z: Tensor, target: Any, offset: Tensor | None, form: str, spec: Spec, norm: Tensor | None = None
) -> Tensor:
    """Of flat rows z [N, C]: class indices [N], probabilities [N, C], or (first, second, lam)."""
    if isinstance(target, tuple):
        first, second, lam = target
        parts = [
            reduced(share * kept_rows(z, one, spread_offset(offset, form, one, z), spec, norm), one, spec)
            for one, share in ((first, lam), (second, 1 - lam))
        ]
        return parts[0] + parts[1]
    if target.is_floating_point():
        return probabilities(z, target, spread_offset(offset, form, z.new_zeros(0).long(), z), spec)
    return reduced(kept_rows(z, target, spread_offset(offset, form, target, z), spec, norm), target, spec)


def probabilities(z: Tensor, target: Tensor, offset: Tensor, spec: Spec) -> Tensor:
    """- sum_c w_c ((1 - e) t_c + e / K) log p_c; the mean is over the rows."""
    there = (offset != -INF).to(z.dtype)
    share = (1 - spec.smoothing) * target + spec.smoothing * there / there.sum(1, keepdim=True)
    share = share if spec.weight is None else share * spec.weight
    rows = torch.ones(len(z), dtype=z.dtype) if spec.by_row is None else spec.by_row
    z = torch.where((rows == 0)[:, None], 0.0, z)
    u, taken = adjusted(z, torch.zeros(len(z), dtype=torch.long), offset, spec, None)
    log_p = torch.where(share != 0, torch.log_softmax(u, 1), 0.0)
    loss = -(share * log_p).sum(1) * torch.where((u == INF).any(1), math.nan, 1.0)
    loss = rows * (loss + spec.z_loss * (u.logsumexp(1) + taken) ** 2 if spec.z_loss else loss)
    if spec.reduction == "none":
        return loss
    return loss.sum() if spec.reduction == "sum" else loss.sum() / rows.sum()


def directions(rows: Tensor, hold: bool = False) -> Tensor:
    """Rows of norm 1; those of norm 0 stay 0 and take no gradient. `hold` keeps the norms constant."""
    norm = rows.norm(dim=1, keepdim=True)
    empty = norm <= 1e-12
    norm = torch.where(empty, 1.0, norm)
    return torch.where(empty, 0.0, rows / (norm.detach() if hold else norm))


def cosines(x: Tensor, w: Tensor, sphere: bool = False) -> tuple[Tensor, Tensor | None]:
    """x.w / (|x| |w|); with SphereFace x.w / |w|, and |x|."""
    if not sphere:
        return directions(x) @ directions(w).T, None
    norm = torch.where(x.norm(dim=1) <= 1e-12, 0.0, x.norm(dim=1))
    return x @ directions(w).T, norm


def repulsion(w: Tensor, threshold: float, project: bool | str, reduction: str) -> Tensor:
    """log sum_j exp(1[cos_ij > threshold] s_ij) - 1[threshold < 1] s_ii (section 6)."""
    unit, same = directions(w, hold=project is not True), torch.eye(len(w), dtype=torch.bool)
    alike = unit @ unit.T
    alike = torch.where(same & (alike.diagonal() == 0), 1.0, alike)  # a row without a direction is like itself
    active = torch.where(same, torch.tensor(threshold < 1), alike > threshold)
    value = torch.where(active, w @ w.T if project == "raw" else alike, 0.0)
    rows = value.logsumexp(1) - value.diagonal()
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / len(rows)


def lade(z: Tensor, target: Tensor, counts: Tensor, lam: float, importance: str, classes: str) -> Tensor:
    """sum_c p_c (-A_c + B_c + lam B_c^2) (section 7), with the constants of the published code."""
    prior, total = counts / counts.sum(), z.shape[1]
    of_batch = torch.bincount(target, minlength=total).to(z.dtype)
    mine = F.one_hot(target, total).bool()
    own = torch.where(mine, z, 0.0).sum(0) / (of_batch + 1e-8)
    ratio = (1 / total + 1e-9) / (prior + 1e-9)
    shift = ratio.log()[None, :] if importance == "class" else ratio.log()[target][:, None]
    bound = (z + shift).logsumexp(0) - math.log(len(z))
    terms = prior * (-own + bound + lam * bound**2)
    return (terms if classes == "all" else terms * (of_batch > 0)).sum()  # a NaN shows, wherever it is
