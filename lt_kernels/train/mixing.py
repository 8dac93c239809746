"""MixUp (Zhang et al., 2018) of a batch with itself in another order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lt_kernels.functional import MixedTarget


def mix_batch(inputs: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, MixedTarget]:
    """lam x_i + (1 - lam) x_j with lam from Beta(alpha, alpha), one lam a batch, and the pair of targets; inputs
    floating [N, ...].
    """
    seed = int(torch.randint(2**31, ()))  # all randomness from torch's state, which a checkpoint keeps
    lam = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(target)).to(target.device)
    return torch.lerp(inputs[other], inputs, lam), MixedTarget(target, target[other], lam)
