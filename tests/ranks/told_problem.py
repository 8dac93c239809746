"""The problem that ranks share in told.py and steps.py, and whether they are in step."""

from __future__ import annotations

from typing import Any

import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.functional import MixedTarget, linear_cross_entropy

N, D, C = 6, 5, 11
INPUT, WEIGHT, TARGET = normal(N, D, seed=1), normal(C, D, seed=2), classes_of(N, C, seed=3)
TABLE = normal(C, seed=4)
ABSENT = TABLE.clone()
ABSENT[int(TARGET[0])] = -torch.inf
OTHER = classes_of(N, C, seed=5)
MIXED = MixedTarget(TARGET, OTHER, 0.3)


def rows(rank: int, world: int) -> Tensor:
    """This rank's class weights."""
    return WEIGHT.chunk(world)[rank].clone().requires_grad_()


def right(rank: int, world: int, group: Any) -> None:
    """The ranks are in step: the next batch has its own value and gradients."""
    features, whole = INPUT.clone().requires_grad_(), INPUT.clone().requires_grad_()
    loss = linear_cross_entropy(features, rows(rank, world), OTHER, group=group)
    exact = torch.nn.functional.cross_entropy(whole @ WEIGHT.T, OTHER)
    loss.backward()
    exact.backward()
    assert_close(loss.detach(), exact.detach(), torch.float64, "loss")
    assert_close(features.grad, whole.grad, torch.float64, "features")
