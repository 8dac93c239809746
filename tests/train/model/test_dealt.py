"""What a part of a batch counts, which losses are computed apart, and what a step in float16 does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the extra [train] is not installed")

from lt_kernels import losses
from lt_kernels.functional import MixedTarget
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.model.dealt import Dealt, clip_gradients, divisor, nothing, of_rows_alone
from lt_kernels.train.model.predictions import largest
from lt_kernels.train.run.strategy import RankScaler, precision_of

WEIGHT = torch.tensor([1.0, 2.0, 4.0])


def head(loss: losses.Loss) -> LinearHead:
    return LinearHead(4, 3, loss)


def test_losses_of_rows_alone_are_computed_apart() -> None:
    """Those that need more than a row are not: counts of a batch, columns, centres, and a mean that weights divide."""
    assert of_rows_alone(head(losses.CrossEntropyLoss()))
    assert of_rows_alone(CosineHead(4, 3, losses.CosFaceLoss()))
    assert of_rows_alone(head(losses.Loss(weight=WEIGHT, average="batch")))
    assert not of_rows_alone(head(losses.Loss(weight=WEIGHT)))
    assert of_rows_alone(head(losses.ARBLoss(torch.tensor([3, 2, 1]))))
    assert not of_rows_alone(head(losses.ARBLoss(counts="batch")))
    assert not of_rows_alone(head(losses.LADELoss(torch.tensor([3, 2, 1]))))
    assert not of_rows_alone(head(losses.EstimatedOffsetLoss(3, 4)))
    assert not of_rows_alone(nn.Linear(4, 3))


def test_a_part_counts_by_what_its_mean_divides_by() -> None:
    target = torch.tensor([0, 2, -100, 2])
    assert divisor(losses.Loss(weight=WEIGHT), target) == 9
    assert divisor(losses.Loss(weight=WEIGHT, average="batch"), target) == 3
    assert divisor(losses.Loss(), target) == 3
    dealt = Dealt(1, 2)
    assert dealt.weigh(head(losses.CrossEntropyLoss()), target, 8) == 4
    mixed = MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 2]), 0.5)
    assert dealt.weigh(head(losses.Loss(weight=WEIGHT)), mixed, 8) == 2
    assert dealt.weights is None
    assert dealt.weigh(head(losses.Loss(weight=WEIGHT)), target, 8) == 9
    assert dealt.weigh(head(losses.Loss(weight=WEIGHT)), target[:1], 8) == 1
    assert dealt.weights == 10
    one = nn.Parameter(torch.zeros(2))
    one.grad = torch.ones(2)
    dealt.complete([one])
    assert dealt.factor == pytest.approx(0.8)
    torch.testing.assert_close(one.grad, torch.full((2,), 0.8))
    assert dealt.weights is None
    dealt.complete([one])
    assert dealt.factor == 1


def test_a_part_without_rows_has_a_gradient_of_zero() -> None:
    module = head(losses.CrossEntropyLoss())
    features = torch.zeros(0, 4, requires_grad=True)
    loss = nothing(features, module, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert all(torch.equal(one.grad, torch.zeros_like(one)) for one in module.parameters() if one.grad is not None)
    assert sum(one.grad is not None for one in module.parameters()) == 2
    scenes = Dealt(1, 2, scenes=True)
    assert scenes.is_nothing(module, torch.full((2, 3, 3), -100))
    assert not scenes.is_nothing(module, torch.zeros(2, 3, 3, dtype=torch.int64))
    assert Dealt(1, 2).is_nothing(module, torch.zeros(0, dtype=torch.int64))


def test_a_step_whose_gradient_overflows_is_left_out() -> None:
    """And the next one is made with a smaller scale, to the value that float32 has."""
    one = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer, scaler = torch.optim.SGD([one], lr=0.5), RankScaler("cpu")
    assert precision_of(TrainConfig(precision="fp16")).scaler.get_scale() == scaler.get_scale() == 2**16
    for grad, expected in ((torch.inf, [1.0, 2.0]), (3.0, [-0.5, 0.5])):
        one.grad = torch.tensor([grad, 3.0]) * scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert one.tolist() == expected
        optimizer.zero_grad()
    assert scaler.get_scale() == 2**15


def test_whole_tensors_are_clipped_and_compared_as_torch_does() -> None:
    one = nn.Parameter(torch.zeros(3))
    one.grad = torch.tensor([3.0, 0.0, 4.0])
    assert clip_gradients([one], 1.0) == 5
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.0, 0.8]))
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]])
    assert largest(logits).tolist() == logits.argmax(-1).tolist() == [1, 0]
