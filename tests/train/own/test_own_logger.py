"""Loggers by class_path: what they are told, each epoch once over a cut and a resume, and the same bits with them."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jsonargparse", reason="the extra [train] is not installed")

from cuts import cut

from lt_kernels import cli
from lt_kernels.system.interrupts import Interrupted
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError, RunFailed
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.files.tensors import read_sealed
from lt_kernels.train.recipes import read_config
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

LINES = {"class_path": "own_loggers.Lines"}
PACKAGE = "lightning.pytorch.loggers"
STEPS = 5  # an epoch


def config(**changes: Any) -> TrainConfig:
    settings = {"imbalance": 100, "epochs": 6, "warmup_epochs": 1, "mixup_alpha": 0.5, "threads": 1}
    return make_config({**settings, "validate_every": 4, "checkpoint_epochs": 2, "logger": LINES, **changes})


def told(folder: Path, what: str) -> list[Any]:
    lines = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    return [line[1:] for line in lines if line[0] == what]


def steps_of(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def same(first: Path, second: Path) -> None:
    """Weights, momentum and generators are equal, bit for bit."""
    one, other = (read_sealed(folder / "last.ckpt") for folder in (first, second))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    states = [checkpoint["callbacks"]["ExactResume"] for checkpoint in (one, other)]
    assert torch.equal(states[0]["torch"], states[1]["torch"])
    for name in ("python", "numpy"):
        assert states[0][name] == states[1][name]


def test_a_logger_is_told_each_row_and_changes_no_bit(tmp_path: Path) -> None:
    train_run(config(logger="none"), tmp_path / "alone")
    train_run(config(), tmp_path / "told")
    same(tmp_path / "alone", tmp_path / "told")
    assert told(tmp_path / "told", "settings") == [[config().settings()]]
    rows = read_rows(tmp_path / "told")
    expected = [[row["epoch"], {k: v for k, v in row.items() if k not in ("epoch", "step")}] for row in rows]
    found = told(tmp_path / "told", "row")
    assert found == expected
    assert [step for step, row in found if "few" in row] == [4, 6]
    assert {"lr", "loss", "seconds"} <= found[0][1].keys()
    assert told(tmp_path / "told", "end") == [["success"]]
    assert read_config(tmp_path / "told" / "config.yaml") == config()
    assert load_run(tmp_path / "told")[0].logger == {**LINES, "init_args": {}}


def test_a_run_that_goes_on_tells_no_epoch_twice(tmp_path: Path) -> None:
    """Cut in the sixth epoch, two checkpoints on: the fifth was told and is trained again."""
    train_run(config(logger="none"), tmp_path / "whole")
    cut(5 * STEPS + 2, lambda: train_run(config(), tmp_path / "cut"))
    assert [step for step, _ in told(tmp_path / "cut", "row")] == [1, 2, 3, 4, 5]
    train_run(config(), tmp_path / "cut", resume=True)
    same(tmp_path / "whole", tmp_path / "cut")
    assert [step for step, _ in told(tmp_path / "cut", "row")] == [1, 2, 3, 4, 5, 6]
    assert told(tmp_path / "cut", "end") == [["failed"], ["success"]]


def test_another_logger_is_told_all_and_one_begun_anew_too(tmp_path: Path) -> None:
    cut(STEPS + 2, lambda: train_run(config(), tmp_path))  # before the first checkpoint
    cut(5 * STEPS + 2, lambda: train_run(config(), tmp_path))
    assert [step for step, _ in told(tmp_path, "row")] == [1, 1, 2, 3, 4, 5]
    other = config(logger={**LINES, "init_args": {"version": "2"}})
    (tmp_path / "told.jsonl").unlink()
    train_run(other, tmp_path, resume=True)
    assert [step for step, _ in told(tmp_path, "row")] == [1, 2, 3, 4, 5, 6]


def test_a_signal_ends_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lt_kernels.train.run.training import Closing

    monkeypatch.setattr(Closing, "on_train_epoch_end", lambda *rest: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train_run(config(), tmp_path)
    assert told(tmp_path, "end") == [["failed"]]


@pytest.mark.parametrize("logger", ["csv", {"class_path": f"{PACKAGE}.CSVLogger", "init_args": {"version": 0}}])
def test_a_csv_logger_has_each_epoch_once(tmp_path: Path, logger: Any) -> None:
    cut(5 * STEPS + 2, lambda: train_run(config(logger=logger), tmp_path))
    files = tmp_path / "lightning_logs"
    assert steps_of(files / "version_0" / "metrics.csv") == [1, 2, 3, 4, 5]
    train_run(config(logger=logger), tmp_path, resume=True)
    last = files / f"version_{int(logger == 'csv')}"
    assert steps_of(last / "metrics.csv") == [1, 2, 3, 4, 5, 6]
    assert "imbalance: 100.0" in (last / "hparams.yaml").read_text()
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_tensorboard_logger_goes_on_in_its_version(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    spec = {"class_path": f"{PACKAGE}.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb"), "version": 0}}
    cut(5 * STEPS + 2, lambda: train_run(config(logger=spec), tmp_path / "run"))
    train_run(config(logger=spec), tmp_path / "run", resume=True)
    found = events.EventAccumulator(str(tmp_path / "tb" / "lightning_logs" / "version_0"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    rows = {row["epoch"]: row for row in read_rows(tmp_path / "run")}
    assert [event.value for event in found.Scalars("few")] == pytest.approx([rows[4]["few"], rows[6]["few"]])


def test_a_logger_that_fails_costs_no_epoch(tmp_path: Path) -> None:
    lost = config(logger={"class_path": "own_loggers.Lost"}, checkpoint_epochs=1)
    with pytest.raises(RunFailed, match=r"^logger Lost: ConnectionError: no answer from the server$"):
        train_run(lost, tmp_path / "lost")
    assert read_sealed(tmp_path / "lost" / "last.ckpt")["epoch"] == 1
    assert told(tmp_path / "lost", "end") == [["failed"]]
    train_run(lost.replace(logger="none"), tmp_path / "lost", resume=True)
    train_run(lost.replace(logger="none"), tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "lost")


WRONG = [
    ("nothing", r"logger must be one of none, csv, tensorboard, wandb, mlflow, got 'nothing'"),
    ({"class_path": f"{PACKAGE}.CSVLoger"}, r"logger.class_path must be the path .* 'CSVLoger'"),
    ({"class_path": "torch.nn.Linear"}, r"logger.class_path must name a class that is a Logger.* 'torch.nn.Linear'"),
    ({"class_path": f"{PACKAGE}.CSVLogger", "init_args": {"folder": "x"}}, r"logger.init_args must be .* got folder"),
    ({"class_path": f"{PACKAGE}.CSVLogger", "init_args": {"name": "", "version": "tensorboard"}}, "the run's own rec"),
    ({"class_path": f"{PACKAGE}.CSVLogger", "init_args": {"name": "", "version": ""}}, "the run's own record"),
]


@pytest.mark.parametrize("logger, message", WRONG)
def test_wrong_loggers_are_named_before_anything_is_written(tmp_path: Path, logger: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train_run(config(logger=logger), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(f"{PACKAGE}.{name}")
    monkeypatch.setattr(module, f"_{name.upper()}_AVAILABLE", False)  # as where it is not installed
    with pytest.raises(ConfigError, match=rf"^logger {PACKAGE}\.[A-Za-z]+Logger: "):
        train_run(config(logger=name), tmp_path)


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    cut(5 * STEPS + 2, lambda: train_run(config(), tmp_path))
    (tmp_path / "logger.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"logger.json' must be as a run with a logger wrote it"):
        train_run(config(), tmp_path, resume=True)


@pytest.mark.slow
def test_each_run_of_a_comparison_has_its_own(tmp_path: Path) -> None:
    words = ["compare", "--data", "digits-lt", "--methods", "ce,bs", "--seeds", "1", "--epochs", "2", "--jobs", "1"]
    assert cli.main([*words, "--set", "logger=csv", "--out", str(tmp_path / "pair")]) == 0
    found = sorted((tmp_path / "pair").glob("*/*/lightning_logs/version_0/metrics.csv"))
    assert [path.parts[-5] for path in found] == ["bs", "ce"]
    assert all(steps_of(path) == [1, 2] for path in found)


def test_a_logger_writes_to_its_own_folder_within_the_run(tmp_path: Path) -> None:
    train_run(config(epochs=1, logger={"class_path": "own_loggers.Placed"}), tmp_path / "run")
    assert [row[0] for row in told(tmp_path / "run" / "records", "row")] == [1]
    assert not (tmp_path / "run" / "told.jsonl").exists()


def test_mlflow_is_told_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train_run(config(epochs=2, logger="mlflow"), tmp_path / "run")
    (losses,) = (tmp_path / "run" / "mlruns").glob("*/*/metrics/loss")
    assert [int(line.split()[2]) for line in losses.read_text().splitlines()] == [1, 2]
    assert "Traceback" not in capfd.readouterr().err


def test_wandb_is_told_each_row_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_run(config(epochs=2, logger="wandb"), tmp_path / "run")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
