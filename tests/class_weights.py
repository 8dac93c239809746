"""Class weights for the logit-weight repulsion: similar ones, adversarial ones, and none that are at the threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import published
import pytest
import torch
from helpers import generator, normal
from torch import Tensor

from lt_kernels.functional import logit_weight_repulsion
from lt_kernels.ops import tiles


def exact_bytes() -> None:
    """Skip a test that multiplies in int8 where a machine may only do so with rounding."""
    if not tiles._byte_products():
        pytest.skip("this CPU has no int8 matrix instructions")


def cosines(weight: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(weight.double(), dim=1)
    return unit @ unit.T


def apart(weight: Tensor, threshold: float, gap: float = 1e-4) -> Tensor:
    """The weights, rows made anew until no pair is at the threshold, where another rounding would decide otherwise."""
    random = generator(7)
    for _ in range(60):
        near = ((cosines(weight) - threshold).abs() < gap).fill_diagonal_(False).any(1)
        if not near.any():
            return weight
        weight = weight.clone()
        weight[near] = torch.randn(int(near.sum()), weight.shape[1], generator=random).to(weight.dtype)
    raise AssertionError("rows stay at the threshold")


def similar(classes: int, features: int, threshold: float, dtype: torch.dtype, gap: float = 1e-4) -> Tensor:
    """Class weights of several lengths, every third row close to the one before it."""
    weight = normal(classes, features, seed=1) * (1 + 3 * torch.rand(classes, 1, generator=generator(2)))
    weight[1::3] = weight[: len(weight[1::3]) * 3 : 3] + normal(len(weight[1::3]), features, seed=3)
    return apart(weight.to(dtype), threshold, gap)


def short(weight: Tensor, raw: bool) -> Tensor:
    """The weights, for raw products an eighth as long: an error of float32 grows with the size of a product."""
    return weight / 8 if raw else weight


def ours(threshold: float, project: Any = True, reduction: Any = "none") -> Callable[[Tensor], Tensor]:
    return lambda weight: logit_weight_repulsion(weight, threshold=threshold, project=project, reduction=reduction)


def exact(threshold: float, project: Any = True, reduction: Any = "none") -> Callable[[Tensor], Tensor]:
    return lambda weight: published.logit_weight_repulsion(weight, threshold, project, reduction)


def adversarial(features: int) -> Tensor:
    """Rows that are parallel, opposite, zero, of extreme lengths or tiny entries, and pairs close to the cosine 0.4."""
    first = normal(60, features, seed=1)
    other = normal(60, features, seed=2)
    along = (first * other).sum(1, keepdim=True) / first.square().sum(1, keepdim=True)
    other = other - along * first
    other *= first.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    cosine = 0.4 + torch.linspace(-1e-4, 1e-4, 60, dtype=torch.float64)[:, None]
    near = cosine * first + (1 - cosine**2).sqrt() * other
    rows = [first, near, 1e12 * near[:9], 1e-9 * first[:9], first[:9], -near[:9], torch.zeros(5, features)]
    spike = torch.full((4, features), 1e-38, dtype=torch.float64)
    spike[:, 0] = torch.tensor([1.0, -1.0, 3.0, 1e10])
    half = 1 + 2.0**-8 * torch.arange(features)[None] % 1.5 + normal(6, features, seed=3, spread=1e-4)  # round far
    return torch.cat((*rows, spike, half)).float()


def apart_or_not(weight: Tensor, threshold: float) -> Tensor:
    """Without the rows that meet another one within 1e-6 of the threshold, which float32 cannot tell apart."""
    near = ((cosines(weight) - threshold).abs() < 1e-6).fill_diagonal_(False).any(1)
    return weight[~near]


def adversaries(d, rng):
    """Rows whose rounding to steps of 1/127 of the largest entry errs most, alone or all in one direction."""
    k = np.arange(d)
    half = (np.arange(d) % 127 + 0.499) / 127  # each entry nearly half a step from where it is rounded to
    half[0] = 1
    needle = np.full(d, 0.499 / 127)  # all but the first entry is rounded away: the most that can be lost
    needle[0] = 1
    normal = rng.normal(size=(6, d))
    rows = [
        half,
        1.0001 * half,
        -half,
        half * (-1.0) ** k,
        half[::-1],
        needle,
        -needle,
        needle * (-1.0) ** k,
        np.ones(d),
        (-1.0) ** k,
        1.0 / (k + 1),
        np.exp(-0.01 * k),
        np.eye(d)[0],
        np.eye(d)[-1],
        normal[0] ** 9,
        *normal[1:4],
        normal[4] + 1e-3 * normal[5],
        normal[4],
        np.sign(normal[5]) * (1 + 1e-3 * normal[4]),
        np.zeros(d),
    ]
    return np.stack(rows)


def scaled(d, dtype, seed):
    """The adversaries, each at its own length."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(adversaries(d, rng))
    most = 3 if dtype == torch.float16 else 7
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-300)
    sizes = torch.from_numpy(10.0 ** rng.uniform(-most, most, (len(rows), 1)))
    return (rows * sizes).to(dtype)
