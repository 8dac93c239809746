"""MixUp and CutMix of a batch with itself in another order: one share a batch, and the pair of targets."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lt_kernels.functional import MixedTarget


def _generator() -> np.random.Generator:
    # all randomness from torch's state, which a checkpoint keeps
    return np.random.default_rng(int(torch.randint(2**31, ())))


def mix_batch(inputs: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, MixedTarget]:
    """lam x_i + (1 - lam) x_j with lam from Beta(alpha, alpha); inputs floating [N, ...] (Zhang et al., 2018)."""
    lam = float(_generator().beta(alpha, alpha))
    other = torch.randperm(len(target)).to(target.device)
    return torch.lerp(inputs[other], inputs, lam), MixedTarget(target, target[other], lam)


def cut_batch(inputs: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, MixedTarget]:
    """A box of x_j pasted into x_i, images floating [N, channels, H, W] (Yun et al., 2019).

    The box has the share 1 - lam of the area, lam from Beta(alpha, alpha), around a uniform centre and is clipped at
    the border; the target's lam is then the share of x_i that is left.
    """
    generator, (height, width) = _generator(), inputs.shape[-2:]
    side = math.sqrt(1 - generator.beta(alpha, alpha))
    box = []
    for length in (height, width):
        middle, half = int(generator.integers(length)), int(length * side) // 2
        box += [max(0, middle - half), min(length, middle + half)]
    top, bottom, left, right = box
    other = torch.randperm(len(target)).to(target.device)
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = inputs[other][..., top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, MixedTarget(target, target[other], lam)
