"""A run that failed after a checkpoint, and a corrected one in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.run.training import train_run

CONFIG: TrainConfig = make_config(
    {"data": "digits-lt", "imbalance": 100, "network": "mlp", "epochs": 2, "lr": 0.05, "threads": 1}
)


def test_a_corrected_run_takes_the_place_of_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the failed one kept is read, and nothing of it stays; with its own settings it may go on."""
    usual = Classifier.apply_epoch

    def fails(self: Classifier, epoch: int) -> None:
        if epoch == 1:
            raise ValueError("this option cannot be used")
        usual(self, epoch)

    with monkeypatch.context() as broken:
        broken.setattr(Classifier, "apply_epoch", fails)
        with pytest.raises(ValueError, match="cannot be used"):
            train_run(CONFIG, tmp_path)
    shards = tmp_path / "shards-0123456789abcdef"
    shards.mkdir()
    assert (tmp_path / "last.ckpt").exists()
    with pytest.raises(ConfigError, match="continue it with --resume"):
        train_run(CONFIG, tmp_path)
    assert shards.exists()
    result = train_run(CONFIG.replace(lr=0.02), tmp_path)
    assert result["config"]["lr"] == 0.02
    assert not shards.exists()
    assert not (tmp_path / "failed.txt").exists()
