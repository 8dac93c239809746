"""Runs on a Dataset of one's own: what its items draw is part of a run that goes on, and its classes are learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("jsonargparse", reason="the extra [train] is not installed")

from cuts import cut

from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.tensors import read_sealed
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

NOISY = {"class_path": "own_parts.Noisy", "train": {"train": True}, "test": {"train": False, "count": 9}}
SETTINGS = {"data": "dataset", "network": "mlp", "network_options": {"hidden": [8]}, "epochs": 8, "batch_size": 16,
            "warmup_epochs": 0, "threads": 1, "checkpoint_steps": 2}  # fmt: skip


@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, lazy: bool) -> None:
    config = make_config({**SETTINGS, "data_options": {**NOISY, "lazy": lazy}})
    result = train_run(config, tmp_path / "whole")
    assert result["accuracy"]["all"] > 90
    assert result["samples"] == {"train": 60, "test": 9}
    cut(7, lambda: train_run(config, tmp_path / "cut"))
    torch.manual_seed(1)
    train_run(config, tmp_path / "cut", resume=True)
    whole, resumed = (read_sealed(tmp_path / name / "last.ckpt") for name in ("whole", "cut"))
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert load_run(tmp_path / "cut")[1].train[0].shape == (60, 3)


def test_what_does_not_fit_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data dataset.*must be among count, train; got size"):
        train_run(make_config({**SETTINGS, "data_options": {**NOISY, "init_args": {"size": 3}}}), tmp_path)
