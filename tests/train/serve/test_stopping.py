"""Early stopping and the best checkpoint: by samples held out for validation, exact over a cut, judged on the test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import same

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.data import load, validation_split
from lt_kernels.system.interrupts import Interrupted
from lt_kernels.train.compare.tables import evaluated_on
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import checked_result, read_rows
from lt_kernels.train.model.predictions import predict
from lt_kernels.train.ranks.group import Ranks
from lt_kernels.train.run import training
from lt_kernels.train.run.checks import check_ranks
from lt_kernels.train.run.loading import load_run

# with this rate the accuracy falls again before the epochs end, so that there is something to stop for
STOPPED = TrainConfig(
    method="ldam-drw",
    method_options={"drw_start": 0.1},
    epochs=20,
    batch_size=32,
    lr=0.2,
    warmup_epochs=0,
    schedule="constant",
    validation=10,
    patience=3,
    keep_best=True,
    threads=1,
)


def cut(moment: str, step: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    """Have a run end by a signal: before a step, or before or after the writing of a file."""
    with monkeypatch.context() as patch:
        if moment == "step":
            before = training.EpochSettings.on_train_batch_start

            def start(self: Any, trainer: Any, *rest: Any) -> None:
                if trainer.global_step == step:
                    raise Interrupted(2)
                before(self, trainer, *rest)

            patch.setattr(training.EpochSettings, "on_train_batch_start", start)
        elif moment == "result":

            def write(*ignored: Any) -> None:
                raise Interrupted(2)

            patch.setattr(training, "write_whole", write)
        else:
            save, count = training.SealedCheckpointIO.save_checkpoint, [0]

            def saved(self: Any, checkpoint: Any, path: Any, **options: Any) -> None:
                save(self, checkpoint, path, **options)
                count[0] += Path(path).name == moment
                if count[0] == step and Path(path).name == moment:
                    raise Interrupted(2)

            patch.setattr(training.SealedCheckpointIO, "save_checkpoint", saved)
        with pytest.raises(Interrupted):
            work()


def state(folder: Path, name: str) -> dict[str, Any]:
    found = torch.load(folder / name, weights_only=True)
    for part in found["callbacks"].values():
        part.pop("seconds", None)
        for row in part.get("rows", ()):
            row.pop("seconds")
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    training.train_run(STOPPED, folder)
    return folder


def test_training_ends_when_the_accuracy_has_not_risen(run: Path) -> None:
    """By the rows of the record, read without the callback: the first largest one, and three epochs after it."""
    rows, about = read_rows(run), checked_result(run / "result.json")["stopping"]
    accuracies = [row["all"] for row in rows]
    best = accuracies.index(max(accuracies)) + 1
    assert about == {"epochs": len(rows), "best": best, "validation": max(accuracies), "kept": best}
    assert len(rows) == best + STOPPED.patience < STOPPED.epochs
    assert state(run, "best.ckpt")["epoch"] + 1 == best
    assert state(run, "last.ckpt")["epoch"] + 1 == len(rows)


def test_rows_are_of_validation_and_the_result_is_of_the_test_set(run: Path) -> None:
    _, data, module = load_run(run)
    whole = load("digits-lt")
    assert torch.equal(data.test[0], whole.test[0])
    assert data.validation is not None
    assert len(data.train[1]) + len(data.validation[1]) == len(whole.train[1])
    result = checked_result(run / "result.json")
    for (inputs, target), expected in (
        (data.test, result["accuracy"]["all"]),
        (data.validation, result["stopping"]["validation"]),
    ):
        right = predict(module, inputs) == target
        means = [right[target == label].double().mean() for label in target.unique()]
        assert 100 * float(torch.stack(means).mean()) == pytest.approx(expected)
    assert result["samples"] == {"train": len(data.train[1]), "test": 500, "validation": len(data.validation[1])}
    assert evaluated_on(result["config"]) == "the balanced test set"
    assert evaluated_on({"validation": 10}) == "validation samples"


def test_the_best_checkpoint_is_that_of_a_run_that_ends_there(run: Path, tmp_path: Path) -> None:
    """With a constant rate, fewer epochs are the first ones of more."""
    best = checked_result(run / "result.json")["stopping"]["best"]
    drw = {"drw_start": 0.1 * STOPPED.epochs / best}
    result = training.train_run(STOPPED.replace(epochs=best, keep_best=False, method_options=drw), tmp_path / "short")
    assert same(state(tmp_path / "short", "last.ckpt")["state_dict"], state(run, "best.ckpt")["state_dict"])
    assert result["accuracy"] == checked_result(run / "result.json")["accuracy"]
    assert result["stopping"]["kept"] == best


@pytest.mark.parametrize(
    ("moment", "step"),
    [("step", 20), ("step", 43), ("best.ckpt", 1), ("best.ckpt", 3), ("last.ckpt", 5), ("result", 0)],
)
def test_a_run_cut_short_goes_on_to_the_same_bits(
    run: Path, moment: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it had stopped, and where one of the two checkpoints was written and not the other."""
    cut(moment, step, monkeypatch, lambda: training.train_run(STOPPED, tmp_path / "cut"))
    result = training.train_run(STOPPED, tmp_path / "cut", resume=True)
    for name in ("best.ckpt", "last.ckpt"):
        assert same(state(run, name), state(tmp_path / "cut", name)), name
    expected = checked_result(run / "result.json")
    assert {key: result[key] for key in ("accuracy", "per_class", "stopping")} == {
        key: expected[key] for key in ("accuracy", "per_class", "stopping")
    }


def test_each_command_takes_the_checkpoint_that_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {}
    for which in (None, "best", "last"):
        words = [] if which is None else ["--checkpoint", which]
        assert cli.main(["predict", str(run), *words, "--out", str(tmp_path / "p.csv")]) == 0
        texts[which] = (tmp_path / "p.csv").read_text()
    assert texts[None] == texts["best"] != texts["last"]
    plain = STOPPED.replace(epochs=1, patience=0, keep_best=False)
    training.train_run(plain, tmp_path / "plain")
    for command in ("predict", "analyze"):
        assert cli.main([command, str(tmp_path / "plain"), "--checkpoint", "best"]) == 2
        assert "--checkpoint must be last for a run without keep_best" in capsys.readouterr().err


def test_wrong_settings(tmp_path: Path) -> None:
    cases = [
        ({"validation": 0}, "validation must be above 0 where patience or keep_best is set"),
        ({"patience": -1}, "patience must be an integer of at least 0, got -1"),
        ({"keep_best": "yes"}, "keep_best must be true or false, got 'yes'"),
        ({"method": "crt", "method_options": {}}, "patience must be left out with the method crt"),
        ({"method": "empirical-offset", "method_options": {}, "patience": 0}, "keep_best must be left out"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            training.train_run(STOPPED.replace(**changes), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    for changes in ({"head": "sharded"}, {"strategy": "fsdp"}):
        with pytest.raises(ConfigError, match="keep_best must be false where processes hold shares"):
            check_ranks(STOPPED.replace(**changes), Ranks(0, 2, 2))
    check_ranks(STOPPED, Ranks(0, 2, 2))


def test_the_split_beside_the_test_set_is_that_in_its_place() -> None:
    data = load("digits-lt")
    beside, instead = validation_split(data, 5, 1, "validation"), validation_split(data, 5, 1)
    assert beside.validation is not None
    assert torch.equal(beside.validation[0], instead.test[0])
    assert torch.equal(beside.train[1], instead.train[1])
    assert torch.equal(beside.test[1], data.test[1])
    assert dataclasses.replace(beside, test=beside.validation).class_counts.tolist() == instead.class_counts.tolist()
    with pytest.raises(ValueError, match="place must be"):
        validation_split(data, 5, 1, "train")  # type: ignore[arg-type]
