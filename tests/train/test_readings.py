"""What the analyses look at: which samples, which logits, and whose gradient has components."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")

from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.heads.scale import scale_of
from lt_kernels.losses import ARBLoss, BalancedSoftmaxLoss, FocalLoss, LDAMLoss, SphereFaceLoss
from lt_kernels.train.model import readings
from lt_kernels.train.model.gradients import components_of
from lt_kernels.train.model.readings import evenly, evenly_by_class, whole


def test_samples_are_drawn_evenly() -> None:
    assert evenly(3, 5).tolist() == [0, 1, 2]
    assert evenly(10, 4).tolist() == [0, 2, 5, 7]
    target = torch.tensor([1, 0, 0, 1, 0, 0, 2])
    assert evenly_by_class(target, 3, 7).tolist() == list(range(7))
    assert evenly_by_class(target, 3, 6).tolist() == [0, 1, 3, 4, 6]
    scenes = torch.zeros(6, 2, 3, dtype=torch.long)
    assert whole(scenes, 20) == 3
    assert evenly_by_class(scenes, 3, 20).tolist() == [0, 2, 4]


def test_pixels_without_a_class_are_left_out() -> None:
    class Whole(torch.nn.Module):
        head = LinearHead(3, 2, BalancedSoftmaxLoss([3, 1]))
        active_head = head

        def features(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.movedim(1, -1)

    inputs = torch.arange(24.0).reshape(2, 3, 2, 2)
    target = torch.tensor([[[0, -100], [1, 1]], [[-100, -100], [0, 1]]])
    features, classes = readings.features_of(Whole(), (inputs, target), torch.arange(2))
    assert classes.tolist() == [0, 1, 1, 0, 1]
    assert features.tolist() == [[0, 4, 8], [2, 6, 10], [3, 7, 11], [14, 18, 22], [15, 19, 23]]


def test_logit_means_of_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(torch.nn.Module):
        head = LinearHead(4, 3, BalancedSoftmaxLoss([9, 3, 1]))
        active_head = head

        def classify(self, features: torch.Tensor) -> torch.Tensor:
            return self.head(features)

    torch.manual_seed(0)
    features, target = torch.randn(11, 4), torch.tensor([0] * 5 + [1] * 6)
    monkeypatch.setattr(readings, "LOGITS", 12)  # four samples at a time
    with torch.no_grad():
        prediction, confidence, means = readings._predictions(Plain(), (features, target), 3)
        logits = Plain().classify(features).double()
    share = logits.softmax(1).max(1)
    assert prediction.tolist() == share.indices.tolist()
    assert confidence.tolist() == pytest.approx(share.values.tolist(), rel=1e-5)
    own = [logits[:5, 0].mean(), logits[5:, 1].mean()]
    others = [logits[5:, 0].mean(), logits[:5, 1].mean(), logits[:, 2].mean()]
    assert means["positive"][:2].tolist() == pytest.approx([float(one) for one in own], rel=1e-5)
    assert means["positive"][2].isnan()
    assert means["negative"].tolist() == pytest.approx([float(one) for one in others], rel=1e-5)


def test_gradient_components_are_the_gradient_of_the_loss() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([30, 5, 1])
    head = LinearHead(4, 3, BalancedSoftmaxLoss(counts))
    features, target = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    found = components_of(head, features.float(), target)
    assert not isinstance(found, str)
    logits = features.double() @ head.weight.double().T + head.bias.double() + counts.double().log()
    share = logits.softmax(1).detach()
    own = torch.nn.functional.one_hot(target, 3).double()
    attraction = ((own * (1 - share)).T @ features / 9).norm(dim=1)
    repulsion = (((1 - own) * share).T @ features / 9).norm(dim=1)
    assert found["attraction"].tolist() == pytest.approx(attraction.tolist(), rel=1e-5)
    assert found["repulsion"].tolist() == pytest.approx(repulsion.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (CosineHead(4, 3, LDAMLoss([9, 3, 1])), "not linear"),
        (LinearHead(4, 3, FocalLoss(2.0)), "focal"),
        (LinearHead(4, 3, FocalLoss(0.0, torch.ones(3))), "weighs"),
        (LinearHead(4, 3, ARBLoss(counts="batch")), "batch"),
    ],
)
def test_a_loss_that_is_no_plain_softmax_has_no_components(head: Any, reason: str) -> None:
    found = components_of(head, torch.randn(2, 4), torch.tensor([0, 1]))
    assert isinstance(found, str)
    assert reason in found


def test_scores_of_sphereface_have_the_length_of_the_features() -> None:
    head = CosineHead(2, 2, SphereFaceLoss(scale=2.0))
    module = SimpleNamespace(head=head, active_head=head, classify=head)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    features = torch.tensor([[3.0, 4.0]])
    assert readings.scores(module, features).tolist() == [pytest.approx([6.0, 8.0])]


def test_scores_of_a_head_of_cosines_are_scaled() -> None:
    assert scale_of(CosineHead(4, 3, LDAMLoss([9, 3, 1], scale=12.0))) == 12
    assert scale_of(CosineHead(4, 3, BalancedSoftmaxLoss([9, 3, 1]), scale=7.0)) == 7
    assert scale_of(LinearHead(4, 3, BalancedSoftmaxLoss([9, 3, 1]))) == 1
    long = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    head = CosineHead(4, 3, LDAMLoss([9, 3, 1]))
    assert readings.as_used(head, long).tolist() == [[pytest.approx(0.6), pytest.approx(0.8), 0, 0]]
