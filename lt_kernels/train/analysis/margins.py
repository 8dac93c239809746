"""Margins as curves: what the loss makes of the target's logit at each angle of feature and class weight."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from lt_kernels.losses.base import Loss
from lt_kernels.margins import Margin

DEGREES = 180


@dataclasses.dataclass(frozen=True)
class MarginCurves:
    """The target's logit divided by the scale, at each `angle` [A] in degrees, for `classes` [K]: the most frequent, a
    middle one, the rarest. `easy` [K, A]: no other class has a larger cosine; `hard` [K, A]: one has.
    """

    angle: np.ndarray
    classes: np.ndarray
    easy: np.ndarray
    hard: np.ndarray


def margin_curves(margin: Margin, order: torch.Tensor) -> MarginCurves | None:
    """The curves of a margin for features of length 1; `order` [C] lists the classes by descending count. None for a
    single class.

    The loss of one row is softplus(rest - logit), rest being the log-sum-exp of the other classes' logits. All of them
    are given the cosine -1 (easy) or 1 (hard), so `rest` is known, and the logit follows from the loss.
    """
    classes = len(order)
    if classes < 2:
        return None
    loss = Loss(margin=margin, scale=1.0, reduction="none")
    chosen = order[[0, classes // 2, classes - 1]].unique_consecutive()
    angle = torch.arange(DEGREES + 1, dtype=torch.float64)
    curves: dict[float, list[np.ndarray]] = {-1.0: [], 1.0: []}
    for others, found in curves.items():
        rest = others + math.log(classes - 1)
        for target in chosen.tolist():
            cosines = torch.full((len(angle), classes), others, dtype=torch.float64)
            cosines[:, target] = angle.deg2rad().cos()
            rows = loss(cosines, torch.full((len(angle),), target))
            found.append((rest - rows.expm1().log()).numpy())
    return MarginCurves(angle.numpy(), chosen.numpy(), np.stack(curves[-1.0]), np.stack(curves[1.0]))
