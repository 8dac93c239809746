"""Functions of the epoch or of the step (from 0): a callback applies them; no loss knows either."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lt_kernels import priors
from lt_kernels.core import checks

__all__ = ["DeferredReweighting", "LinearWarmup", "PolynomialDecay", "SphereFaceAnnealing"]


@dataclass(frozen=True)
class DeferredReweighting:
    """No class weight before `start_epoch`, class-balanced weights from it on: DRW (Cao et al., 2019).

    Args:
        class_counts: training samples of each class [C], all above 0.
        start_epoch: the first epoch with weights.
        beta, normalize: of `priors.class_balanced_weight`; normalize=False with a loss whose average="batch" is the
            weighting of Cui et al. (2019), where with the usual mean the scale of the weights cancels.
    """

    class_counts: Any
    start_epoch: int = 160
    beta: float = 0.9999
    normalize: bool = True
    _device: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = checks.counts(self.class_counts)
        object.__setattr__(self, "class_counts", tuple(counts.tolist()))  # a tuple, which cannot be changed
        object.__setattr__(self, "_device", counts.device)
        object.__setattr__(self, "start_epoch", checks.whole("start_epoch", self.start_epoch, 0))
        object.__setattr__(self, "beta", checks.number("beta", self.beta))
        object.__setattr__(self, "normalize", checks.flag("normalize", self.normalize))
        self._weight()

    def _weight(self) -> Tensor:
        return priors.class_balanced_weight(self.class_counts, self.beta, self.normalize).to(self._device)

    def __call__(self, epoch: int) -> Tensor | None:
        """The class weights [C] of an epoch, or None."""
        epoch = checks.whole("epoch", epoch, 0)
        return None if epoch < self.start_epoch else self._weight()


@dataclass(frozen=True)
class PolynomialDecay:
    """(1 - epoch / total)^power, 0 from `total` on: the strength of logit-weight repulsion over training."""

    total: int
    power: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", checks.whole("total", self.total))
        object.__setattr__(self, "power", checks.number("power", self.power, 0.0))

    def __call__(self, epoch: int) -> float:
        """The factor of an epoch."""
        epoch = checks.whole("epoch", epoch, 0)
        return max(0.0, 1 - epoch / self.total) ** self.power


@dataclass(frozen=True)
class LinearWarmup:
    """min(1, (epoch + 1) / epochs): the learning rate's factor while training starts (Goyal et al., 2017)."""

    epochs: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", checks.whole("epochs", self.epochs))

    def __call__(self, epoch: int) -> float:
        """The factor of an epoch."""
        epoch = checks.whole("epoch", epoch, 0)
        return min(1.0, (epoch + 1) / self.epochs)


@dataclass(frozen=True)
class SphereFaceAnnealing:
    """max(low, high / (1 + rate step)^power): how much of the plain cosine SphereFace keeps (Liu et al., 2017).

    For `losses.SphereFaceLoss.set_annealing`, before each optimiser step.

    Args:
        high: at least `low`; the annealing of step 0.
        low: at least 0; 0 ends with the margin alone.
        rate: at least 0. power: at least 0.
    """

    high: float = 1000.0
    low: float = 5.0
    rate: float = 0.12
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "rate", "power"):
            object.__setattr__(self, name, checks.number(name, getattr(self, name), 0.0))
        object.__setattr__(self, "high", checks.number("high", self.high))
        if self.high < self.low:
            raise ValueError(f"high must be at least low, {self.low}, got {self.high}")

    def __call__(self, step: int) -> float:
        """The annealing at a step."""
        step = checks.whole("step", step, 0)
        return max(self.low, self.high / (1 + self.rate * step) ** self.power)
