"""What moves the weights of the rarest classes, recorded over the epochs: the published sums over the run's batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from cuts import cut
from lightning.pytorch import Callback, Trainer
from tolerances import assert_close

from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.losses import ARBLoss, BalancedSoftmaxLoss, CrossEntropyLoss, EstimatedOffsetLoss, LDAMLoss
from lt_kernels.margins import MixedTarget
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.model.gradients import parts_of_batch
from lt_kernels.train.run import training
from lt_kernels.train.run.components import read_history
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.parts import rarest, read_parts

CONFIG = TrainConfig(
    method="bs", network_options={"hidden": [16]}, epochs=2, warmup_epochs=0, lr=0.05, batch_size=32, threads=1
)


def exact(probability: torch.Tensor, features: torch.Tensor, share: torch.Tensor, origin: Any = None) -> torch.Tensor:
    """|sum_i Y_ik p_ic (x_i - a_c)|, with 1 - p_ic where k is c, one by one; `share` is Y [N, C]."""
    classes = probability.shape[1]
    found = torch.zeros(classes, classes, dtype=torch.float64)
    for k in range(classes):
        for c in range(classes):
            moved = features if origin is None else features - origin[c]
            force = 1 - probability[:, c] if c == k else probability[:, c]
            found[k, c] = ((share[:, k] * force)[:, None] * moved).sum(0).norm()
    return found


class Witness(Callback):
    """Computes, before each step, what the batch's parts are."""

    def __init__(self, log_counts: torch.Tensor) -> None:
        self.log_counts, self.found = log_counts, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            features, head = pl_module.network(batch[0]).double(), pl_module.head
            logits = features @ head.weight.double().T + head.bias.double() + self.log_counts
            own = torch.nn.functional.one_hot(batch[1], len(self.log_counts)).double()
            self.found.append((trainer.current_epoch, exact(logits.softmax(1), features, own)))


def test_the_mean_over_the_batches_of_an_epoch_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training.load_data(CONFIG)
    witness = Witness(data.class_counts.double().log())
    monkeypatch.setattr(training, "Trainer", lambda callbacks, **rest: Trainer(callbacks=[witness, *callbacks], **rest))
    training.train_run(CONFIG.replace(record=True), tmp_path)
    history = read_history(tmp_path, 10)
    assert history is not None
    assert history.parts is not None
    order = data.class_counts.argsort(stable=True)
    assert history.parts.epochs.tolist() == [1, 2]
    assert history.parts.classes.tolist() == order.tolist()
    for epoch in range(2):
        batches = torch.stack([found for at, found in witness.found if at == epoch])
        assert len(batches) == -(-len(data.train[1]) // 32)
        assert_close(torch.from_numpy(history.parts.values[epoch]), batches.mean(0)[:, order], torch.float32)


def test_it_changes_no_bit_and_survives_a_cut_within_an_epoch(tmp_path: Path) -> None:
    config = CONFIG.replace(method="estimated-offset", method_options={"center_weight": 0.01}, checkpoint_steps=4)
    training.train_run(config, tmp_path / "plain")
    recorded = config.replace(record=True)
    training.train_run(recorded, tmp_path / "whole")
    cut(14, lambda: training.train_run(recorded, tmp_path / "cut"))
    training.train_run(recorded, tmp_path / "cut", resume=True)
    plain, whole = (load_run(tmp_path / name)[2].state_dict() for name in ("plain", "whole"))
    assert all(torch.equal(plain[name], whole[name]) for name in plain)
    texts = [(tmp_path / name / "gradient_parts.csv").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 1 + 2 * 10 * 10
    assert not (tmp_path / "plain" / "gradient_parts.csv").exists()


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=generator), torch.arange(12) % 3


def logits_of(head: LinearHead, features: torch.Tensor) -> torch.Tensor:
    logits = features.double() @ head.weight.detach().double().T
    return logits if head.bias is None else logits + head.bias.detach().double()


ALL = torch.arange(4)


def test_counts_of_the_batch_and_pixels_without_a_class() -> None:
    """Class 3 is not in the batch: its weight is not moved, and the softmax is that of the others."""
    features, target = drawn()
    head = LinearHead(4, 4, ARBLoss(counts="batch"))
    target = torch.where(torch.arange(12) < 2, -100, target)
    found = parts_of_batch(head, features.reshape(3, 4, 4), target.reshape(3, 4), ALL)
    features, target = features[2:], target[2:]
    own = torch.nn.functional.one_hot(target, 4).double()
    probability = (logits_of(head, features)[:, :3] + own.sum(0)[:3].log()).softmax(1)
    assert found is not None
    assert_close(found[:3, :3], exact(probability, features.double(), own[:, :3]), torch.float32)
    assert found[:, 3].tolist() == found[3].tolist() == [0, 0, 0, 0]


def test_two_targets_count_with_their_shares() -> None:
    features, target = drawn()
    head = LinearHead(4, 4, BalancedSoftmaxLoss([9, 5, 3, 1]))
    for lam in (0.3, torch.linspace(0, 1, 12)):
        mixed = MixedTarget(target, target.flip(0), lam)
        first, second = (torch.nn.functional.one_hot(one, 4).double() for one in (mixed.first, mixed.second))
        part = torch.as_tensor(lam).double().reshape(-1, 1)
        probability = (logits_of(head, features) + torch.tensor([9.0, 5, 3, 1]).double().log()).softmax(1)
        share = part * first + (1 - part) * second
        found = parts_of_batch(head, features, mixed, ALL)
        assert found is not None
        assert_close(found, exact(probability, features.double(), share), torch.float32)


@pytest.mark.parametrize("use", ["subtract", "regularize", "predict"])
def test_an_estimated_offset_has_slopes_of_its_own_where_it_is_subtracted_in_training(use: Any) -> None:
    features, target = drawn()
    head = LinearHead(4, 4, EstimatedOffsetLoss(4, 4, use=use), bias=False)
    centers = head.loss.center_loss.centers
    centers.data.copy_(torch.arange(16.0).reshape(4, 4) / 8)
    own, origin = torch.nn.functional.one_hot(target, 4).double(), centers.double() / 2
    offset = (origin * head.weight.detach().double()).sum(1)
    logits = logits_of(head, features) - (offset if use == "subtract" else 0)
    wanted = exact(logits.softmax(1), features.double(), own, origin if use == "subtract" else None)
    found = parts_of_batch(head, features, target, ALL)
    assert found is not None
    assert_close(found, wanted, torch.float32)


def test_only_a_plain_softmax_has_parts_and_half_precision_is_widened() -> None:
    features, target = drawn()
    assert parts_of_batch(CosineHead(4, 4, LDAMLoss([9, 5, 3, 1])), features, target, ALL) is None
    head = LinearHead(4, 4, CrossEntropyLoss())
    half = features.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = parts_of_batch(head, half, target, ALL[:1])
    wide = parts_of_batch(head, half.float(), target, ALL[:1])
    assert found is not None
    assert wide is not None
    assert torch.equal(found, wide)


def test_the_rarest_classes_have_samples() -> None:
    counts = torch.tensor([3, 0, 9, 1, 3])
    assert rarest(counts, 9).tolist() == [3, 0, 4, 2]
    assert rarest(counts, 2).tolist() == [3, 0]


def test_an_odd_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gradient_parts.csv"
    assert read_parts(tmp_path) is None
    lines = ["epoch,class,source,part", "1,1,0,0.5", "1,1,1,0.25", "2,1,0,0.75", "2,1,1,1"]
    path.write_text("\n".join(lines[:1]))
    assert read_parts(tmp_path) is None
    path.write_text("\n".join(lines))
    found = read_parts(tmp_path, 2)
    assert found is not None
    assert found.values.tolist() == [[[0.5], [0.25]], [[0.75], [1]]]
    assert (found.epochs.tolist(), found.classes.tolist()) == ([1, 2], [1])
    with pytest.raises(ConfigError, match="must have the 3 classes"):
        read_parts(tmp_path, 3)
    for odd in (lines[:-1], [lines[0], *lines[2:]], [lines[0], *reversed(lines[1:])]):
        path.write_text("\n".join(odd))
        with pytest.raises(ConfigError, match="a row for each class and source"):
            read_parts(tmp_path)
    path.write_text(path.read_text().replace("part", "x"))
    with pytest.raises(ConfigError, match="must have columns"):
        read_parts(tmp_path)


def test_numbers_of_an_epoch_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lt_kernels.train.run import parts

    monkeypatch.setattr(parts, "NUMBERS", 35)
    training.train_run(CONFIG.replace(record=True, epochs=1), tmp_path)
    found = read_parts(tmp_path, 10)
    assert found is not None
    assert found.values.shape == (1, 10, 3)
    assert np.isfinite(found.values).all()
