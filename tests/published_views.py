"""The contrastive terms as their papers write them: loops over anchors, keys and classes."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(rows: Tensor) -> Tensor:
    """Rows of norm 1."""
    return rows / rows.norm(dim=1, keepdim=True)


def balanced_contrastive(views: Tensor, prototypes: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Zhu et al. (2022), an anchor and a key at a time; [V N]."""
    view, keys = unit(views), torch.cat((unit(views), unit(prototypes)))
    label = target.tolist() * (len(views) // len(target))
    of_key = label + list(range(len(prototypes)))
    rows = []
    for i, own in enumerate(label):
        logit = keys @ view[i] / temperature
        others = [k for k in range(len(keys)) if k != i]
        divisor = [of_key.count(of_key[k]) - (of_key[k] == own) for k in others]
        denominator = (logit[others] - torch.tensor(divisor).to(logit).log()).logsumexp(0)
        positive = [k for k in others if of_key[k] == own]
        rows.append(-(logit[positive] - denominator).sum() / len(positive))
    return torch.stack(rows)


def class_mean_cross_entropy(
    query: Tensor, key: Tensor, target: Tensor, key_class: Tensor, prior: Tensor, own: Tensor | None
) -> Tensor:
    """Suh and Seo (2023), a row and a class at a time; rows whose class has no key are left out."""
    rows = []
    for i, label in enumerate(target.tolist()):
        logit, scores = key @ query[i], {}
        for c in range(len(prior)):
            mine = [k for k in range(len(key)) if key_class[k] == c and not (own is not None and own[i] == k)]
            if mine:
                scores[c] = logit[mine].exp().mean().log() + prior[c].log()
        if label in scores:
            rows.append(torch.stack(list(scores.values())).logsumexp(0) - scores[label])
    return torch.stack(rows).mean() if rows else query.sum() * 0
