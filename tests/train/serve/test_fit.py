"""A run from Python: the bits of the command line, its result, its model and its probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.data import load
from lt_kernels.train import fit
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import checked_result

CHANGES = {"epochs": 2, "method": "bs", "threads": 1}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_the_bits_of_the_command_line(tmp_path: Path) -> None:
    run = fit("digits-lt", out=tmp_path / "python", **CHANGES)
    words = [word for key, value in CHANGES.items() for word in ("--set", f"{key}={value}")]
    words += ["--out", str(tmp_path / "words"), "--quiet"]
    assert cli.main(["train", "--config", "digits-lt", *words]) == 0
    one, other = weights(tmp_path / "python"), weights(tmp_path / "words")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    expected = checked_result(tmp_path / "words" / "result.json")
    assert run.accuracy == expected["accuracy"]
    assert run.per_class == expected["per_class"]
    assert (run.folder / "config.yaml").read_bytes() == (tmp_path / "words" / "config.yaml").read_bytes()


def test_model_and_probabilities(tmp_path: Path) -> None:
    run = fit({"data": "digits-lt", **CHANGES}, out=tmp_path / "run")
    inputs, target = load("digits-lt").test
    with torch.inference_mode():
        logits = run.model()(inputs)
    right = (logits.argmax(1) == target).double()
    means = [float(right[target == label].mean()) for label in range(10)]
    assert [100 * mean for mean in means] == pytest.approx(run.per_class)
    assert torch.allclose(run.predict(inputs), logits.softmax(1), atol=1e-6)
    counts = torch.tensor(run.result["class_counts"])
    odds = logits.softmax(1) * counts
    assert torch.allclose(run.predict(inputs, prior="train"), odds / odds.sum(1, keepdim=True), atol=1e-6)


def test_a_finished_run_is_returned_and_an_unfinished_one_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = fit(TrainConfig(**CHANGES))
    assert first.folder == Path("runs/digits-lt-bs-seed-0")
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(TrainConfig(**CHANGES))
    assert fit(TrainConfig(**CHANGES), resume=True).result == first.result
    (first.folder / "result.json").unlink()
    assert fit(TrainConfig(**CHANGES), resume=True).accuracy == first.accuracy


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config key must be one of"):
        fit("digits-lt", out=tmp_path, epoch=3)
    with pytest.raises(ConfigError, match="devices must be 0 or 1 unless"):
        fit("digits-lt", out=tmp_path / "run", devices=2)
    with pytest.raises(ConfigError, match="config must be a recipe's name, a file or settings, got int"):
        fit(3)  # type: ignore[arg-type]
