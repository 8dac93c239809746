"""The learning rate as a function of the epoch, fractions of an epoch included."""

from __future__ import annotations

import math

from lt_kernels.train.config import TrainConfig


def rate_factor(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The share of the peak rate at step `step` of the `steps` steps of `epoch`, both from 0.

    Linear warm-up: (t + 1 / steps) / warmup_epochs with t = epoch + step / steps. Then cosine (1 + cos(pi t /
    epochs)) / 2, or the factor of the last milestone passed, or 1.
    """
    time = epoch + step / steps
    if time < config.warmup_epochs:
        return min(1.0, (time + 1 / steps) / config.warmup_epochs)
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * time / config.epochs)) / 2
    passed = [gamma for milestone, gamma in zip(config.milestones, config.gammas, strict=True) if epoch >= milestone]
    return passed[-1] if passed else 1.0
