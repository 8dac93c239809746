"""What a user of torch writes, in the dtype of the input: its distance from the judge is the measure of ours."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzz.judge import Spec, spread_offset


def in_dtype(value: Any, like: Tensor) -> Any:
    """A table in the dtype of the input."""
    return value.to(like.dtype) if isinstance(value, Tensor) else value


def turned(own: Tensor, rival: Tensor, target: Tensor, spec: Spec, norm: Tensor | None) -> Tensor:
    """phi by the arc cosine, as the papers' code has it."""
    margin = in_dtype(spec.margin, own)
    margin = margin[target] if isinstance(margin, Tensor) else margin
    if spec.phi == "additive":
        return own - margin
    cosine = own if norm is None else own / norm
    theta = cosine.clamp(-1, 1).acos()
    if spec.phi == "sphere":
        step = (margin * theta / math.pi).floor().detach()
        psi = (1 - 2 * (step % 2)) * torch.cos(margin * theta) - 2 * step
        psi = (spec.annealing * theta.cos() + psi) / (1 + spec.annealing)
        return psi if norm is None else norm * psi
    hard = torch.ones_like(own) if spec.every else (rival > own).to(own.dtype)
    angle = torch.as_tensor(margin * (1 + spec.instance * hard * (1 - own) / 2))
    value = torch.cos(theta + angle)
    return torch.where(theta + angle > math.pi, own - angle * angle.sin(), value) if spec.guard else value


def rows_loss(z: Tensor, target: Tensor, offset: Tensor, spec: Spec, norm: Tensor | None) -> Tensor:
    """log_softmax, gathered, weighted."""
    chosen = F.one_hot(target, z.shape[1]).bool()
    if spec.phi != "plain" and len(z):
        rival = z.masked_fill(chosen | (offset == -torch.inf), -torch.inf).amax(1)
        z = torch.where(chosen, turned(z[chosen], rival, target, spec, norm)[:, None].to(z.dtype), z)
    log_p = torch.log_softmax(spec.scale * z + offset, 1)
    weight = torch.ones_like(log_p[:0].sum(0)) if spec.weight is None else in_dtype(spec.weight, log_p)
    own = log_p.gather(1, target[:, None])[:, 0]
    first = weight[target] * -own
    if spec.gamma:
        first = first * (1 - own.exp()) ** spec.gamma
    smoothing = in_dtype(spec.smoothing, log_p)
    eps = smoothing[target] if isinstance(smoothing, Tensor) else smoothing
    more = spec.z_loss * torch.logsumexp(spec.scale * z + offset, 1) ** 2 if spec.z_loss else 0.0
    if isinstance(eps, float) and eps == 0:
        return first + more
    there = offset != -torch.inf
    uniform = -(weight * torch.where(there, log_p, 0.0)).sum(1) / there.sum(1)
    return (1 - eps) * first + eps * uniform + more


def reduced(loss: Tensor, target: Tensor, spec: Spec) -> Tensor:
    """Masked, and summed or averaged."""
    kept = target != spec.ignore
    rows = torch.ones_like(loss) if spec.by_row is None else in_dtype(spec.by_row, loss)
    loss = torch.where(kept, rows * loss, 0.0)
    if spec.reduction == "none":
        return loss
    if spec.reduction == "sum":
        return loss.sum()
    if spec.weight is None or spec.average == "batch":
        return loss.sum() / rows[kept].sum()
    return loss.sum() / (in_dtype(spec.weight, loss)[target[kept]] * rows[kept]).sum()


def plain(z: Tensor, target: Any, spec: Spec) -> bool:
    """Whether it is F.cross_entropy itself."""
    usual = isinstance(target, Tensor) and spec.phi == "plain" and spec.gamma == 0 and spec.average == "weighted"
    usual = usual and spec.by_row is None and not spec.z_loss
    return usual and not isinstance(spec.smoothing, Tensor) and len(z) > 0


def cross_entropy(
    z: Tensor, target: Any, offset: Tensor | None, form: str, spec: Spec, norm: Tensor | None = None
) -> Tensor:
    """As `judge.cross_entropy`; torch's own function where that is all there is to it."""
    offset = None if offset is None else in_dtype(offset, z)
    absent = offset is not None and bool((offset == -torch.inf).any())
    if plain(z, target, spec) and not (absent and (spec.smoothing or target.is_floating_point())):
        u = z if spec.scale == 1 else spec.scale * z
        u = u if offset is None else u + spread_offset(offset, form, target, z)
        weight = in_dtype(spec.weight, u)
        options = {"label_smoothing": spec.smoothing, "reduction": spec.reduction, "ignore_index": spec.ignore}
        target = target.to(u.dtype) if target.is_floating_point() else target
        return F.cross_entropy(u, target, weight, **options)
    if not isinstance(target, tuple) and target.is_floating_point():
        return probabilities(z, target.to(z.dtype), offset, form, spec)
    pairs = [(target, 1.0)] if isinstance(target, Tensor) else [(target[0], target[2]), (target[1], 1 - target[2])]
    total: Any = 0.0
    for one, share in pairs:
        inside = torch.where(one == spec.ignore, 0, one)
        loss = rows_loss(z, inside, spread_offset(offset, form, inside, z), spec, norm)
        total = total + reduced(in_dtype(share, loss) * loss, one, spec)
    return total


def probabilities(z: Tensor, target: Tensor, offset: Tensor | None, form: str, spec: Spec) -> Tensor:
    """Dense targets where some classes are not there, which torch has no function for."""
    offset = spread_offset(offset, form, z.new_zeros(0).long(), z)
    there = (offset != -torch.inf).to(z.dtype)
    share = (1 - spec.smoothing) * target + spec.smoothing * there / there.sum(1, keepdim=True)
    share = share if spec.weight is None else share * in_dtype(spec.weight, z)
    log_p = torch.log_softmax(spec.scale * z + offset, 1)
    loss = -(share * torch.where(there > 0, log_p, 0.0)).sum(1)
    loss = loss + spec.z_loss * torch.logsumexp(spec.scale * z + offset, 1) ** 2 if spec.z_loss else loss
    rows = torch.ones_like(loss) if spec.by_row is None else in_dtype(spec.by_row, loss)
    if spec.reduction == "none":
        return rows * loss
    return (rows * loss).sum() if spec.reduction == "sum" else (rows * loss).sum() / rows.sum()


def cosines(x: Tensor, w: Tensor, sphere: bool) -> tuple[Tensor, Tensor | None]:
    """F.normalize and a product."""
    if sphere:
        return F.linear(x, F.normalize(w)), x.norm(dim=1)
    return F.linear(F.normalize(x), F.normalize(w)), None


def repulsion(w: Tensor, threshold: float, project: bool | str, reduction: str) -> Tensor:
    """All cosines, or products, masked."""
    norm = w.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit, same = w / (norm if project is True else norm.detach()), torch.eye(len(w), dtype=torch.bool)
    alike = unit @ unit.T
    active = torch.where(same, torch.tensor(threshold < 1), alike > threshold)
    value = torch.where(active, w @ w.T if project == "raw" else alike, 0.0)
    rows = value.logsumexp(1) - value.diagonal()
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()


def lade(z: Tensor, target: Tensor, counts: Tensor, lam: float, importance: str, classes: str) -> Tensor:
    """The published code's steps."""
    counts = counts.to(z.dtype if z.dtype == torch.float64 else torch.float32)
    prior, total = counts / counts.sum(), z.shape[1]
    number = torch.bincount(target, minlength=total)
    own = torch.where(F.one_hot(target, total).bool(), z, 0.0).sum(0) / (number + 1e-8)
    ratio = ((1 / total + 1e-9) / (prior + 1e-9)).log()
    shift = ratio[None, :] if importance == "class" else ratio[target][:, None]
    bound = (z + shift).logsumexp(0) - math.log(len(z))
    terms = prior * (-own + bound + lam * bound**2)
    return (terms if classes == "all" else terms * (number > 0)).sum().to(z.dtype)
