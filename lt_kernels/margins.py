"""Small frozen values that the public functions take: margins, and a pair of targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_kernels import priors
from lt_kernels.core import checks
from lt_kernels.core.angles import angle
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.terms import Phi


@dataclass(frozen=True, eq=False)
class Margin:
    """A kind of phi, and a margin for all classes or for each."""

    kind: int = field(default=Phi.PLAIN, init=False, repr=False)
    value: float = field(default=0.0, init=False, repr=False)
    per_class: Tensor | None = field(default=None, init=False, repr=False)
    strength: float = field(default=0.0, init=False, repr=False)  # how much a hard sample's margin grows
    fallback: bool = field(default=False, init=False, repr=False)  # continue in a straight line beyond theta + m = pi

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class CosFace(Margin):
    """phi = cos(theta) - margin (Wang et al., 2018).

    Raises:
        ValueError: if `margin` is not finite.
    """

    margin: float = 0.35

    def __post_init__(self) -> None:
        self._set(kind=Phi.ADDITIVE, value=checks.number("margin", self.margin))


@dataclass(frozen=True, eq=False)
class ArcFace(Margin):
    """phi = cos(theta + margin), and cos(theta) - margin sin(margin) beyond theta + margin = pi (Deng et al., 2019).

    Args:
        margin: radians, in [0, pi].
    """

    margin: float = 0.5

    def __post_init__(self) -> None:
        self._set(kind=Phi.ANGULAR, value=angle("margin", self.margin), fallback=True)


@dataclass(frozen=True, eq=False)
class SphereFace(Margin):
    """phi = |x| (lam cos(theta) + psi) / (1 + lam), psi = (-1)^k cos(margin theta) - 2k, k = floor(margin theta / pi).

    Args:
        margin: a whole number from 1 to 64 by which the angle is multiplied; 4 in the paper. It costs that many steps a
            row, each of which adds its rounding to an angle's cosine.
        annealing: lam, at least 0; 0 is psi alone. Training starts with a large one, which `schedules.
            SphereFaceAnnealing` lowers. A tensor with one number is read at each call: a compiled call that is given
            another value is not compiled again.

    Source: Liu et al. (2017).
    """

    margin: int = 4
    annealing: float | Tensor = 0.0

    def __post_init__(self) -> None:
        self._set(kind=Phi.SPHERE, value=float(checks.whole("margin", self.margin, 1, 64)))
        if isinstance(self.annealing, Tensor) and self.annealing.is_floating_point():
            self._set(per_class=_one_number("annealing", self.annealing))
        else:
            self._set(strength=checks.number("annealing", self.annealing, 0.0))


@dataclass(frozen=True, eq=False)
class LDAM(Margin):
    """phi = cos(theta) - m_y with m_c = max_margin (n_min / n_c)^(1/4) (Cao et al., 2019).

    Args:
        class_counts: training samples of each class [C], all above 0.
        max_margin: the margin of the rarest class.
    """

    class_counts: Tensor
    max_margin: float = 0.5

    def __post_init__(self) -> None:
        counts = checks.counts(self.class_counts, positive=True)  # a copy, not the caller's
        self._set(kind=Phi.ADDITIVE, class_counts=counts, per_class=priors.ldam_margin(counts, self.max_margin))


@dataclass(frozen=True, eq=False)
class DBM(Margin):
    """phi = cos(theta + m_i), m_i = m_y (1 + instance h_i (1 - cos)/2), m_c = max_margin (n_min / n_c)^tau.

    h_i is 1 where another class has the larger raw cosine, or everywhere (Difficulty-aware Balancing Margin, 2025).

    Args:
        class_counts: training samples of each class [C], all above 0.
        max_margin: the rarest class's margin, radians.
        tau: how fast margins fall with the count.
        instance: how much a hard sample's margin grows with its distance.
        guard: beyond theta + m = pi continue as ArcFace does, where the paper's logit would rise again.
        applies: the samples whose margin grows, "hard" or "all" (h_i = 1 for every row, the paper's ablation).
    """

    class_counts: Tensor
    max_margin: float = 0.1
    tau: float = 1.0
    instance: float = 1.0
    guard: bool = False
    applies: Literal["hard", "all"] = "hard"

    def __post_init__(self) -> None:
        counts = checks.counts(self.class_counts, positive=True)
        applies = checks.choice("applies", self.applies, ("hard", "all"))
        self._set(
            kind=Phi.ANGULAR_ALL if applies == "all" else Phi.ANGULAR,
            class_counts=counts,
            per_class=priors.dbm_margin(counts, self.max_margin, self.tau),
            strength=checks.number("instance", self.instance, 0.0),
            fallback=checks.flag("guard", self.guard),
        )


def _one_number(name: str, value: Tensor) -> Tensor:
    """A tensor with one number that is at least 0, which is checked where that does not wait for a device."""
    checks.held(name, checks.floating(name, value), "make it with device='cpu'")
    if value.numel() != 1:
        raise ValueError(f"{name} must have one number, got a tensor of shape {list(value.shape)}")
    if value.requires_grad:
        raise TypeError(f"{name} must not require a gradient, which it has not")
    if checks.readable(value):
        checks.number(name, value.item(), 0.0)
    return value


@dataclass(frozen=True, eq=False)
class MixedTarget:
    """Two targets a row: lam L(first) + (1 - lam) L(second) (Zhang et al., 2018; Yun et al., 2019).

    Args:
        first, second: class indices, of the shape that a target has.
        lam: the share of the first, in [0, 1]: a number, or a tensor with one for each row.
    """

    first: Tensor
    second: Tensor
    lam: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.lam, Tensor) and self.lam.is_floating_point() and self.lam.ndim <= 1:
            checks.shares("lam", checks.stored("lam", self.lam))
        elif isinstance(self.lam, Tensor) and self.lam.ndim:
            shown = f"{self.lam.dtype} {list(self.lam.shape)}"
            raise ValueError(f"lam must be a number or a floating-point vector, got {shown}")
        elif (lam := checks.number("lam", self.lam, 0.0, 1.0)) is not self.lam:
            object.__setattr__(self, "lam", lam)
        for name, target in (("first", self.first), ("second", self.second)):
            if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
                shown = target.dtype if isinstance(target, Tensor) else type(target).__name__
                raise TypeError(f"{name} must be a tensor of class indices, got {shown}")
        if self.first.shape != self.second.shape:
            raise ValueError(
                f"second must have the shape of first, {list(self.first.shape)}, got {list(self.second.shape)}"
            )

    @classmethod
    def from_dense(cls, probabilities: Tensor, *, label_smoothing: float = 0.0) -> MixedTarget:
        """The pair of targets behind class probabilities, as timm's Mixup and torchvision's MixUp and CutMix give them.

        probabilities: floating [N, C], each row lam onehot(first) + (1 - lam) onehot(second), whose larger share comes
        first; a row of one class has it twice. With label_smoothing e in [0, 1) each row is (1 - e) of that and e / C
        of every class, as timm's Mixup(label_smoothing=e) mixes them: then give the loss the same label_smoothing.
        Errors: ValueError naming the row that is not so; on a GPU, which is not waited for, its lam is NaN, and so is
        its loss.
        """
        checks.floating("probabilities", probabilities)
        if probabilities.ndim != 2 or probabilities.shape[1] == 0:
            raise ValueError(f"probabilities must be [N, C], got {list(probabilities.shape)}")
        smoothing, classes = checks.number("label_smoothing", label_smoothing, 0.0, 1.0), probabilities.shape[1]
        if smoothing == 1.0:
            raise ValueError("label_smoothing must be below 1, which leaves nothing of the targets, got 1.0")
        kind = accumulate_type(probabilities.dtype)
        shares = (probabilities.detach().to(kind) - smoothing / classes) / (1 - smoothing)
        rounding = 8 * torch.finfo(probabilities.dtype).eps  # of the mixing, in the dtype of what is given
        share, index = shares.topk(min(3, classes), 1)
        share = F.pad(share, (0, 3 - share.shape[1]))
        total = share[:, 0] + share[:, 1]
        wrong = (share[:, 2] > rounding) | ~((total - 1).abs() <= rounding) | (shares < -rounding).any(1)
        if checks.readable(wrong) and bool(wrong.any()):
            raise _not_two(probabilities, int(wrong.nonzero()[0]), smoothing)
        first, single = index[:, 0], share[:, 1] <= rounding
        second = torch.where(single, first, index[:, min(1, classes - 1)])
        lam = torch.where(single, 1.0, share[:, 0] / total)
        return cls(first, second, torch.where(wrong, torch.nan, lam))


def _not_two(probabilities: Tensor, row: int, smoothing: float) -> ValueError:
    """The error for a row of probabilities that does not stand for two classes."""
    held, spread = probabilities[row], f"label_smoothing={smoothing}"
    least, count, total = float(held.min()), int((held > 0).sum()), float(held.sum())
    return ValueError(
        f"probabilities must hold at most two classes a row, with a sum of 1, beside {spread} spread over all, got row "
        f"{row} with {count} classes above 0, a least of {least:.6g} and a sum of {total:.6g}: targets that were "
        "smoothed, as by timm's Mixup(label_smoothing=0.1), need that label_smoothing here"
    )
