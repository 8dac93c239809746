"""Each function and loss as its paper writes it: dense, in float64, differentiable, shared with nothing.

Exponentials are taken plainly and divided, as on paper; the inputs of the tests are small enough for that in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def present(offset: Tensor) -> Tensor:
    """Which classes are there: those whose offset is not minus infinity."""
    return offset != -torch.inf


def log_softmax(logits: Tensor, offset: Tensor) -> Tensor:
    """log(e^{z_c + b_c} / sum_k e^{z_k + b_k}), with 0 in place of minus infinity for a class that is not there."""
    shifted = (logits + offset) - (logits + offset).max(-1, keepdim=True).values.detach()
    share = shifted.exp() / shifted.exp().sum(-1, keepdim=True)
    # Below e^-300 the share underflows: there the logarithm is taken before the division.
    logarithm = torch.where(
        share > 1e-300, share.clamp_min(1e-300).log(), shifted - shifted.exp().sum(-1, keepdim=True).log()
    )
    return torch.where(present(offset), logarithm, 0.0)


def mean_of(loss: Tensor, divisor: Tensor | float, reduction: str) -> Tensor:
    """One number a row, their sum, or their sum over the divisor."""
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / divisor


def offset_rows(offset: Tensor | None, target: Tensor, logits: Tensor) -> Tensor:
    """The [N, C] offset: [C] for every row, [1, C, C] a row of the target's class, [N, 1, C] a row of its own."""
    rows, classes = logits.shape
    if offset is None:
        return torch.zeros_like(logits)
    if offset.shape in ((1, classes, classes), (classes, classes)):
        return offset.reshape(classes, classes)[target.clamp(0, classes - 1)]
    return offset.reshape(-1, classes).expand(rows, classes)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    offset: Tensor | None = None,
    gamma: float = 0.0,
    smoothing: float | Tensor = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy with offset (Menon et al., 2021), focal factor (Lin, 2017), smoothing (Szegedy, 2016).

    (1 - eps) w_y (1 - p_y)^gamma (-log p_y) + eps / K sum_c w_c (-log p_c) over the K classes that are there;
    "mean" divides by the sum of w_y.
    """
    kept = target != ignore_index
    chosen = torch.where(kept, target, 0)
    rows = offset_rows(offset, chosen, logits)
    weight = torch.ones_like(logits[0]) if weight is None else weight
    logarithm = log_softmax(logits, rows)
    own = logarithm.gather(1, chosen[:, None])[:, 0]
    eps = smoothing[chosen] if isinstance(smoothing, Tensor) else smoothing
    factor = 1.0 if gamma == 0 else (-torch.expm1(own)) ** gamma
    uniform = -(weight * logarithm).sum(1) / present(rows).sum(1)
    loss = (1 - eps) * weight[chosen] * factor * -own + eps * uniform
    return mean_of(torch.where(kept, loss, 0.0), (weight[chosen] * kept).sum(), reduction)


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    offset: Tensor | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """- sum_c w_c ((1 - eps) t_c + eps / K) log p_c (Szegedy et al., 2016); "mean" divides by N."""
    rows = torch.zeros_like(logits) if offset is None else offset.reshape(-1, logits.shape[1]).expand_as(logits)
    there = present(rows).to(logits.dtype)
    smooth = torch.where(there > 0, (1 - smoothing) * target + smoothing / there.sum(1, keepdim=True), 0.0)
    weight = torch.ones_like(logits[0]) if weight is None else weight
    return mean_of(-(weight * smooth * log_softmax(logits, rows)).sum(1), float(len(logits)), reduction)


def balanced_softmax(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """- log( n_y e^{z_y} / sum_k n_k e^{z_k} ), mean over the rows (Ren et al., 2020)."""
    mass = class_counts * logits.exp()
    return -(mass.gather(1, target[:, None])[:, 0] / mass.sum(1)).log().mean()


def logit_adjustment(logits: Tensor, target: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of z + tau log pi (Menon et al., 2021)."""
    mass = (class_counts / class_counts.sum()) ** tau * logits.exp()
    return -(mass.gather(1, target[:, None])[:, 0] / mass.sum(1)).log().mean()


def arb(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """- log( e^{z_y} / sum_k (n_k / n_y) e^{z_k} ), mean over the rows (Xie et al., 2023)."""
    ratio = class_counts[None, :] / class_counts[target][:, None]
    return -(logits.exp().gather(1, target[:, None])[:, 0] / (ratio * logits.exp()).sum(1)).log().mean()


def focal(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """w_y (1 - p)^gamma (-log p), mean over the rows also with weights (Lin et al., 2017, for the softmax)."""
    probability = own_of(logits.exp() / logits.exp().sum(1, keepdim=True), target)
    weight = torch.ones_like(logits[0]) if weight is None else weight
    return (weight[target] * (1 - probability) ** gamma * -probability.log()).mean()


def class_balanced_weight(class_counts: Tensor, beta: float, normalize: bool = True) -> Tensor:
    """(1 - beta) / (1 - beta^n), scaled to sum to the number of classes (Cui et al., 2019)."""
    weight = torch.tensor(
        [(1 - beta) / -math.expm1(n * math.log(beta)) if beta else 1.0 for n in class_counts.tolist()],
        dtype=torch.float64,
    )
    return weight * len(weight) / weight.sum() if normalize else weight


def class_balanced(
    logits: Tensor, target: Tensor, class_counts: Tensor, beta: float, gamma: float, average: str, normalize: bool
) -> Tensor:
    """Class-balanced weight times (focal) cross-entropy, over N or over the sum of weights (Cui et al., 2019)."""
    weight = class_balanced_weight(class_counts, beta, normalize)
    mean = focal(logits, target, gamma, weight)
    return mean if average == "batch" else mean * len(target) / weight[target].sum()


def ldam_margin(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """n^(-1/4), scaled so that the rarest class gets the largest margin (Cao et al., 2019)."""
    root = class_counts.pow(-0.25)
    return max_margin * root / root.max()


def dbm_margin(class_counts: Tensor, max_margin: float = 0.1, tau: float = 1.0) -> Tensor:
    """K (n_c / n_min)^(-tau) (Son et al., 2025)."""
    return max_margin * (class_counts / class_counts.min()) ** (-tau)


def cosines(features: Tensor, linear_weight: Tensor) -> Tensor:
    """x.w / (|x| |w|)."""
    return (features @ linear_weight.T) / (features.norm(dim=1)[:, None] * linear_weight.norm(dim=1)[None, :])


def cosface(own: Tensor, margin: float | Tensor) -> Tensor:
    """cos(theta) - m (Wang et al., 2018)."""
    return own - margin


def arcface(own: Tensor, margin: float | Tensor, guard: bool = True) -> Tensor:
    """cos(theta + m), and cos(theta) - m sin(m) where theta + m passes pi (Deng et al., 2019)."""
    theta = own.acos()
    margin = torch.as_tensor(margin, dtype=own.dtype).expand_as(own)
    inside = torch.cos(theta + margin)
    return torch.where(theta + margin <= math.pi, inside, own - margin * margin.sin()) if guard else inside


def sphereface(own: Tensor, margin: int, annealing: float = 0.0) -> Tensor:
    """(lam cos(theta) + psi) / (1 + lam) with psi = (-1)^k cos(M theta) - 2k, k = floor(M theta / pi).

    Liu et al. (2017).
    """
    theta = own.acos()
    branch = (margin * theta / math.pi).floor().detach().clamp(0, margin - 1)
    psi = (1 - 2 * (branch % 2)) * torch.cos(margin * theta) - 2 * branch
    return (annealing * own + psi) / (1 + annealing)


def dbm(
    cosine: Tensor,
    target: Tensor,
    margin: Tensor,
    instance: float = 1.0,
    guard: bool = False,
    applies: str = "hard",
) -> Tensor:
    """cos(theta + m_y (1 + lambda h d)), h = misclassified, d = (1 - cos) / 2, not detached (Son et al., 2025).

    In the ablation of its table 5 the margin is that of all positives: h = 1.
    """
    own = cosine.gather(1, target[:, None])[:, 0]
    hard = torch.ones_like(own) if applies == "all" else (cosine.argmax(1) != target).to(own.dtype)
    return arcface(own, margin[target] * (1 + instance * hard * (1 - own) / 2), guard)


def replace(cosine: Tensor, target: Tensor, own: Tensor) -> Tensor:
    """The cosines with the target's entry of each row replaced."""
    return torch.where(torch.nn.functional.one_hot(target, cosine.shape[1]).bool(), own[:, None], cosine)


def own_of(cosine: Tensor, target: Tensor) -> Tensor:
    """The cosine to the target's class."""
    return cosine.gather(1, target[:, None])[:, 0]


def lade_regularizer(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    lam: float = 0.1,
    importance: str = "class",
    classes: str = "all",
) -> Tensor:
    """sum_c p_c (-A_c + B_c + lambda B_c^2), a Donsker-Varadhan bound for each class (Hong et al., 2021).

    A_c is the mean of f_c over the rows of class c, B_c the log of the weighted mean of e^{f_c} over the whole batch.
    """
    rows, columns = logits.shape
    prior = class_counts / class_counts.sum()
    ratio = (1 / columns + 1e-9) / (prior + 1e-9)
    total = logits.new_zeros(())
    for c in range(columns):
        members = logits[target == c, c]
        if classes == "present" and len(members) == 0:
            continue
        weight = ratio[c].expand(rows) if importance == "class" else ratio[target]
        bound = (weight * logits[:, c].exp()).mean().log()
        total = total + prior[c] * (-members.sum() / (len(members) + 1e-8) + bound + lam * bound**2)
    return total


def uniform_offset(offset: Tensor) -> Tensor:
    """sum_k q_k log q_k with q = softmax(-o)."""
    share = (-offset).exp() / (-offset).exp().sum()
    return (share * share.log()).sum()


def center_loss(features: Tensor, target: Tensor, centers: Tensor) -> Tensor:
    """Mean of |x - c_y|^2 over the rows (Wen et al., 2016; without the factor of one half)."""
    return sum((x - centers[y]).pow(2).sum() for x, y in zip(features, target.tolist(), strict=True)) / len(features)


def center_step(features: Tensor, target: Tensor, centers: Tensor, rate: float) -> Tensor:
    """c_j - rate sum_{y_i = j} (c_j - x_i) / (1 + N_j) (Wen et al., 2016)."""
    moved = centers.clone()
    for j in range(len(centers)):
        members = features[target == j]
        moved[j] -= rate * (centers[j] - members).sum(0) / (1 + len(members))
    return moved


def estimated_offset(
    features: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    centers: Tensor,
    center_weight: float = 1.0,
    uniform_weight: float = 1.0,
    use: str = "subtract",
) -> Tensor:
    """Mean of CE(w.x - o) + lam1 |x - c_y|^2, plus lam2 sum q log q, o_k = c_k.w_k / 2; "regularize": CE(w.x).

    "predict": CE(w.x) without the last term.
    """
    offset = (centers * linear_weight).sum(1) / 2
    loss = cross_entropy(features @ linear_weight.T - (offset if use == "subtract" else 0), target)
    uniform = 0 if use == "predict" else uniform_weight * uniform_offset(offset)
    return loss + center_weight * center_loss(features, target, centers) + uniform


def label_aware_smoothing(class_counts: Tensor, head: float, tail: float, shape: str, power: float = 1.0) -> Tensor:
    """The smoothing of each class, from `tail` for the rarest to `head` for the most frequent (Zhong et al., 2021).

    Where all are as frequent, every class is among the most frequent.
    """
    above, range_ = class_counts - class_counts.min(), class_counts.max() - class_counts.min()
    rank = above / range_ if range_ > 0 else torch.ones_like(above)
    if shape == "concave":
        return tail + (head - tail) * torch.sin(math.pi * rank / 2)
    if shape == "convex":
        return head + (head - tail) * torch.sin(1.5 * math.pi + math.pi * rank / 2)
    return tail + (head - tail) * (rank if shape == "linear" else rank**power)


def label_aware(logits: Tensor, target: Tensor, smoothing: Tensor, spread: str = "all") -> Tensor:
    """(1 - eps_y) CE - eps_y / C sum_c log p_c, or eps_y / (C - 1) over the other classes only (Zhong et al., 2021)."""
    logarithm = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    own, eps, classes = own_of(logarithm, target), smoothing[target], logits.shape[1]
    rest = logarithm.sum(1) / classes if spread == "all" else (logarithm.sum(1) - own) / (classes - 1)
    return (-(1 - eps) * own - eps * rest).mean()


def logit_weight_repulsion(
    linear_weight: Tensor, threshold: float = 0.4, project: bool | str = True, reduction: str = "sum"
) -> Tensor:
    """log sum_j exp(1[cos_ij > theta] s_ij) - 1[theta < 1] s_ii, s the cosines of the weights or their products."""
    norm = linear_weight.norm(dim=1, keepdim=True)
    unit = linear_weight / (norm if project is True else norm.detach())
    diagonal = torch.eye(len(unit), dtype=torch.bool)
    similar = torch.where(diagonal, torch.tensor(threshold < 1), unit @ unit.T > threshold)
    alike = linear_weight @ linear_weight.T if project == "raw" else unit @ unit.T
    gated = torch.where(similar, alike, 0.0)
    top = gated.detach().amax(1, keepdim=True) if project == "raw" else 0.0  # products may be past what exp can hold
    rows = (gated - top).exp().sum(1).log() + (top - gated.diagonal()[:, None])[:, 0]
    return mean_of(rows, float(len(unit)), reduction)
