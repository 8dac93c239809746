"""What is recorded over the epochs: the right numbers, the same over a resume, and no bit of the training changed."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lightning.pytorch import Callback, Trainer

from lt_kernels.train.config import TrainConfig
from lt_kernels.train.run import build, training
from lt_kernels.train.run.components import FILE, NAMES, ComponentLog, read_history
from lt_kernels.train.run.loading import load_run

CONFIG = TrainConfig(
    method="bs", network_options={"hidden": [16]}, epochs=4, warmup_epochs=0, lr=0.05, batch_size=32, threads=1
)


class Copy(Callback):
    """Copy the run's folder at the beginning of an epoch: what a run that was killed then leaves behind."""

    def __init__(self, epoch: int, source: Path, target: Path) -> None:
        self.epoch, self.source, self.target = epoch, source, target

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            shutil.copytree(self.source, self.target)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder)[2].state_dict()


def test_the_training_is_the_same_with_it(tmp_path: Path) -> None:
    training.train_run(CONFIG, tmp_path / "without")
    training.train_run(CONFIG.replace(record=True), tmp_path / "with")
    plain, watched = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert read_history(tmp_path / "without") is None
    history = read_history(tmp_path / "with")
    assert history is not None
    assert history.epochs.tolist() == [1, 2, 3, 4]
    assert {name: history.values[name].shape for name in NAMES} == dict.fromkeys(NAMES, (4, 10))
    assert np.isnan(history.values["estimated_offset"]).all()
    _, data, module = load_run(tmp_path / "with")
    features, target = module.network(data.train[0]).detach().double(), data.train[1]
    means = torch.stack([features[target == index].mean(0) for index in range(10)])
    weight = module.head.weight.detach().double()
    assert history.values["offset"][-1] == pytest.approx((means * weight).sum(1).numpy() / 2, rel=1e-5)
    share = (features @ weight.T + module.head.bias.double() + data.class_counts.log().double()).softmax(1).detach()
    own = torch.nn.functional.one_hot(target, 10).double()
    attraction = ((own * (1 - share)).T @ features / len(target)).norm(dim=1)
    assert history.values["attraction"][-1] == pytest.approx(attraction.numpy(), rel=1e-4)


def test_a_resumed_run_has_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"center_weight": 0.01}
    config = CONFIG.replace(method="estimated-offset", method_options=options, checkpoint_epochs=2, record=True)
    parts = tmp_path / "parts"
    with monkeypatch.context() as patched:
        copy = Copy(3, tmp_path / "whole", parts)
        patched.setattr(training, "Trainer", lambda callbacks, **rest: Trainer(callbacks=[*callbacks, copy], **rest))
        training.train_run(config, tmp_path / "whole")
    half = (parts / FILE).read_text()
    assert len(half.splitlines()) == 1 + 3 * 10  # the third epoch is not in the checkpoint, which is of the second
    training.train_run(config, parts, resume=True)
    whole = (tmp_path / "whole" / FILE).read_text()
    assert (parts / FILE).read_text() == whole
    assert whole.startswith(half)
    rows = list(csv.DictReader(whole.splitlines()))
    assert all(row[name] for row in rows for name in NAMES)


def test_a_measurement_leaves_everything_as_it_was(tmp_path: Path) -> None:
    config = CONFIG.replace(network="resnet32", network_options={"width": 2}, method="ldam")
    data = build.load_data(config)
    module = build.build_module(config, data).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    states = torch.get_rng_state()
    values = ComponentLog(tmp_path, data).measure(module)
    assert torch.equal(torch.get_rng_state(), states)
    assert module.training
    assert module.network.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert values[:2].isnan().all()  # a margin: no components
    assert values[2].isfinite().all()
    assert not list(tmp_path.iterdir())
