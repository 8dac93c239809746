"""The directions in which training moves class weights are the parts of the published gradients."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib import image

from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.losses import BalancedSoftmaxLoss, CrossEntropyLoss, DBMLoss, EstimatedOffsetLoss, LADELoss
from lt_kernels.regularizers import LogitWeightRepulsion
from lt_kernels.train.analysis.directions import directions
from lt_kernels.train.analysis.planar import Plane, write_planes

COUNTS = torch.tensor([9, 3, 1])


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(40, 2, dtype=torch.float64), torch.arange(40) % 3


@pytest.mark.parametrize("offset", [False, True])
def test_attraction_and_repulsion_of_a_softmax(offset: bool, rows: tuple[Tensor, Tensor]) -> None:
    features, target = rows
    loss = BalancedSoftmaxLoss(COUNTS) if offset else CrossEntropyLoss()
    head = LinearHead(2, 3, loss).double()
    found = directions(head, None, features, target)
    assert list(found) == ["attraction", "repulsion"]
    logits = features @ head.weight.T + head.bias
    probability = (logits + COUNTS.log() if offset else logits).softmax(1)
    for index in range(3):
        own = target == index
        pull = ((1 - probability[own, index, None]) * features[own]).sum(0) / 40
        push = -(probability[~own, index, None] * features[~own]).sum(0) / 40
        assert found["attraction"][index] == pytest.approx(pull.detach().numpy(), abs=1e-9)
        assert found["repulsion"][index] == pytest.approx(push.detach().numpy(), abs=1e-9)
    assert head.loss.reduction == "mean"
    assert head.weight.grad is None


def test_the_parts_of_a_head_of_cosines_turn_the_weights_and_add_up(rows: tuple[Tensor, Tensor]) -> None:
    features, target = rows
    head = CosineHead(2, 3, DBMLoss(COUNTS, base="bs", scale=4.0)).double()
    found = directions(head, None, features, target)
    (whole,) = torch.autograd.grad(head(features, target), head.weight)
    assert found["attraction"] + found["repulsion"] == pytest.approx(-whole.numpy(), abs=1e-9)
    weight = head.weight.detach().numpy()
    for part in found.values():
        assert np.linalg.norm(part, axis=1).min() > 1e-3
        assert (part * weight).sum(1) == pytest.approx(np.zeros(3), abs=1e-9)


def test_the_direction_of_logit_weight_repulsion(rows: tuple[Tensor, Tensor]) -> None:
    weight = torch.tensor([[2.0, 0.0], [1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
    head = LinearHead(2, 3, CrossEntropyLoss()).double()
    head.weight.data.copy_(weight)
    found = directions(head, LogitWeightRepulsion(threshold=0.4), *rows)["regularizer"]
    unit = weight / weight.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    active = cosine > 0.4
    share = torch.where(active, cosine, 0.0).softmax(1)
    for i in range(3):
        others = [j for j in range(3) if j != i and active[i, j]]
        pushes = [(share[i, j] + share[j, i]) * (unit[j] - cosine[i, j] * unit[i]) for j in others]
        expected = -sum(pushes, torch.zeros(2, dtype=torch.float64)) / weight[i].norm()
        assert found[i] == pytest.approx(expected.numpy(), abs=1e-9)
    assert np.linalg.norm(found[:2], axis=1).min() > 0.1
    assert found[2] == pytest.approx(np.zeros(2), abs=1e-12)  # no other weight is alike


def test_losses_whose_rows_have_none_of_their_own_have_no_parts(rows: tuple[Tensor, Tensor]) -> None:
    features, target = rows
    for loss in (LADELoss(COUNTS), EstimatedOffsetLoss(3, 2)):
        head = LinearHead(2, 3, loss).double()
        assert directions(head, None, features, target) == {}
        assert list(directions(head, LogitWeightRepulsion(), features, target)) == ["regularizer"]


def plane(**parts: np.ndarray) -> Plane:
    weight = np.array([[2.0, 0.0], [1.0, 0.5], [-0.5, 1.0]])
    target = np.arange(3)
    return Plane("bs", COUNTS.numpy(), weight, target, target, weight, lambda at: (at @ weight.T).argmax(1), parts)


def test_the_files_hold_the_directions(tmp_path: Path) -> None:
    parts = {"attraction": np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), "regularizer": np.full((3, 2), -0.5)}
    write_planes([plane(), plane(**parts)], tmp_path)
    with (tmp_path / "planar_directions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["attraction"] * 3 + ["regularizer"] * 3
    assert [float(row["y"]) for row in rows] == [0, 2, 0, -0.5, -0.5, -0.5]
    assert [row["training_samples"] for row in rows[:3]] == ["9", "3", "1"]
    pixels = (255 * image.imread(tmp_path / "planar_directions.png")[:, :, :3]).astype(int)
    blue, black = (np.all(abs(pixels - colour) < 3, axis=2).sum() for colour in ([51, 34, 136], [0, 0, 0]))
    assert blue > 100
    assert black > 100


def test_without_directions_there_is_no_picture_of_them(tmp_path: Path) -> None:
    write_planes([plane()], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "planar.png",
        "planar_features.csv",
        "planar_weights.csv",
    ]
