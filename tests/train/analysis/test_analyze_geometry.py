"""The analyses' numbers of features, weights and biases: literal ones, and one kind of features for every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from test_analyze import literal, rows_of

from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.losses import BalancedSoftmaxLoss, CrossEntropyLoss, EstimatedOffsetLoss, LDAMLoss
from lt_kernels.metrics import fisher_separability
from lt_kernels.train.analysis import tables
from lt_kernels.train.model import readings


def test_a_bias_is_what_it_subtracts() -> None:
    found = literal(bias=torch.tensor([0.5, -1.0, 2.0]))
    assert found.offsets["trained bias"].tolist() == [-0.5, 1, -2]
    assert [row["minus bias"] for row in rows_of(tables.offsets([found]))] == ["1.0", "-2.0", "-0.5"]
    assert "minus bias" not in tables.offsets([literal()])


def test_boundaries_are_shifts_in_halves_of_the_distance_of_the_means() -> None:
    """Means (1/2, 1), (0, 2) and (-2, 1); of classes 0 and 2: x = o_0 - o_2 over 2, between 1/2 and -2."""
    assert literal().boundaries is None
    found = literal(offset=torch.tensor([0.0, 0.0, -1.0]))
    pairs = {
        (0, 1): ((1 * 0.25 - 2 * 1.5) / 5**0.5) / (1.25**0.5 / 2),
        (0, 2): ((2 * -0.75 - 1) / 2) / (2.5 / 2),
        (1, 2): ((1 * -1 + 2 * 1.5 - 1) / 5**0.5) / (5**0.5 / 2),
    }
    shifts = [(pairs[0, 1] + pairs[0, 2]) / 2, (-pairs[0, 1] + pairs[1, 2]) / 2, (-pairs[0, 2] - pairs[1, 2]) / 2]
    assert found.boundaries is not None
    assert found.of_all(found.boundaries).tolist() == pytest.approx(shifts)
    assert [float(row["shift"]) for row in rows_of(tables.boundaries([found]))] == pytest.approx(
        [shifts[1], shifts[2], shifts[0]]
    )


def test_separability_is_of_raw_features_for_every_run_and_of_unit_ones_beside_them() -> None:
    """A head of cosines uses features of length 1; the network's own are compared."""
    raw = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(3).repeat(20, 1)
    target = torch.arange(60) % 3
    unit = torch.nn.functional.normalize(raw, dim=1)
    sizes: dict[str, Any] = {"prediction": target, "confidence": torch.rand(60), "weight": torch.eye(3)}
    train = (torch.eye(3), torch.arange(3))
    linear = literal(test=(raw, target), train=train, raw=raw, **sizes)
    cosine = literal(test=(unit, target), train=train, raw=raw, **sizes)
    exact = {kind: fisher_separability(kind, target, 3, ridge=1e-2)[[1, 2, 0]].tolist() for kind in (raw, unit)}
    for found in (linear, cosine):
        assert found.separability["raw"].tolist() == pytest.approx(exact[raw])
        assert found.separability["unit"].tolist() == pytest.approx(exact[unit])
        assert found.summary["separability_all"] == pytest.approx(np.mean(exact[raw]))
        assert found.summary["separability_unit_few"] == pytest.approx(exact[unit][2])
    row = rows_of(tables.separability([cosine]))[0]
    assert (float(row["separability"]), float(row["separability_unit"])) == pytest.approx(
        (exact[raw][0], exact[unit][0])
    )


class Module:
    """A head alone, with or without another way to read its logits."""

    def __init__(self, head: Any, readout: Any = None, closing: Any = None) -> None:
        self.head = self.active_head = head
        self.parts = type("Parts", (), {"readout": readout, "closing": closing})


def test_what_prediction_subtracts() -> None:
    linear = LinearHead(2, 3, BalancedSoftmaxLoss([9, 3, 1]))
    bias, offset = readings.bias_of(Module(linear)), readings.offset_of(Module(linear), 3)
    assert bias is not None
    assert offset is not None
    assert torch.equal(offset.float(), -bias)
    assert readings.offset_of(Module(linear, readout=len), 3) is None
    without = LinearHead(2, 3, CrossEntropyLoss(), bias=False)
    assert readings.bias_of(Module(without)) is None
    for head in (without, CosineHead(2, 3, LDAMLoss([9, 3, 1]))):
        offset = readings.offset_of(Module(head), 3)
        assert offset is not None
        assert offset.tolist() == [0, 0, 0]
    estimated = LinearHead(2, 3, EstimatedOffsetLoss(3, 2, use="predict"), bias=False)
    estimated.loss.center_loss.centers.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    offset = readings.offset_of(Module(estimated), 3)
    weight = estimated.weight.detach()
    assert offset is not None
    assert offset.tolist() == pytest.approx([float(weight[0, 0]), 2 * float(weight[1, 1]), 0])


def test_a_bias_that_was_replaced_is_not_the_one_of_the_gradient() -> None:
    head, pair = LinearHead(2, 3, CrossEntropyLoss()), (torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))
    assert isinstance(readings._components(Module(head), head, pair), dict)
    assert readings.bias_of(Module(head, closing=len)) is None  # nor is it drawn as one that was trained
    assert readings._components(Module(head, closing=len), head, pair) == "its classifier was changed after training"
