"""Files of a run that are not what they were: each is refused in a line that names it, and none is executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels import cli
from tests.injection.runs import recipe

Said = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, beside the recipe."""
    root = tmp_path_factory.mktemp("finished")
    words = ["train", "--config", str(recipe(root, epochs=1)), "--out", str(root / "run"), "--quiet"]
    assert cli.main([*words, "--set", "record=true"]) == 0
    return root / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """A command's status and its one line."""

    def command(*words: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        line = capsys.readouterr().err
        assert line.count("\n") == (status != 0), line
        assert "weights_only" not in line
        return status, line

    return command


def unfinished(run: Path) -> list[str | Path]:
    """The words that go on with a run, once it has no result."""
    (run / "result.json").unlink(missing_ok=True)
    return ["train", "--resume", "--out", run, "--quiet"]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def everything(path: Path) -> bytes:
    """What torch.save writes of an object that is not tensors alone, and that runs a program when it is made again."""

    class Planted:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {path}",)

    torch.save({"state_dict": Planted()}, path.with_name("planted.pt"))
    content = path.with_name("planted.pt").read_bytes()
    path.with_name("planted.pt").unlink()
    return content


@pytest.mark.parametrize("share", [0, 0.001, 0.03, 0.3, 0.5, 0.7, 0.97, 0.999, 1])
def test_a_flipped_bit_of_a_checkpoint_is_seen(run: Path, said: Said, share: float) -> None:
    path = run / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes(flipped(content, round(share * (len(content) - 1))))
    for words in (lambda: ["analyze", run], lambda: unfinished(run)):
        status, line = said(*words())
        assert status == 2
        assert f"'{path}' must be a checkpoint that lt-kernels wrote, got " in line
        assert "put a copy of it back, or remove it to begin anew" in line
    path.write_bytes(content)
    assert said(*unfinished(run))[0] == 0


def test_other_checkpoints_are_refused(run: Path, said: Said, tmp_path: Path) -> None:
    content = (run / "last.ckpt").read_bytes()
    others = {
        "empty": b"",
        "cut short": content[: len(content) // 2],
        "without its end": content[:-90],
        "a text": b"no checkpoint\n" * 40,
        "a pickle": pickle.dumps({"state_dict": {}}),
        "that runs a program": everything(tmp_path / "executed"),
    }
    words = unfinished(run)
    for name, other in others.items():
        (run / "last.ckpt").write_bytes(other)
        status, line = said(*words)
        assert status == 2, name
        assert f"'{run}/last.ckpt' must be a checkpoint that lt-kernels wrote, got " in line, name
    assert not (tmp_path / "executed").exists()


def test_a_sealed_program_is_not_executed(run: Path, said: Said, tmp_path: Path) -> None:
    """With a good checksum, too."""
    import hashlib

    body = bytearray(everything(tmp_path / "executed"))
    body[-2:] = (82).to_bytes(2, "little")
    seal = b"lt-kernels sha256 " + hashlib.sha256(body).hexdigest().encode()
    (run / "last.ckpt").write_bytes(bytes(body) + seal)
    status, line = said(*unfinished(run))
    assert status == 2
    assert "damaged or holds more than tensors" in line
    assert not (tmp_path / "executed").exists()


CHANGES = [("seed=1", "seed must be 0"), ("lr=0.5", "lr must be 0.05"), ("method=ce", "method must be 'ldam-drw-lwr'")]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_the_checkpoint_of_another_run_is_refused(
    finished: Path, tmp_path: Path, said: Said, change: str, message: str
) -> None:
    """Its own folder's settings fit, and the checkpoint was put there from elsewhere."""
    words = ["train", "--config", finished.parent / "recipe.yaml", "--set", change, "--out", tmp_path / "other"]
    options = ["--set", "method_options={}"] if "method" in change else []
    assert said(*words, *options, "--set", "record=true", "--quiet")[0] == 0
    shutil.copy(finished / "last.ckpt", tmp_path / "other" / "last.ckpt")
    for again in (lambda: ["analyze", tmp_path / "other"], lambda: unfinished(tmp_path / "other")):
        status, line = said(*again())
        assert status == 2
        assert f"checkpoint of another run: {message}, as in '{tmp_path}/other/last.ckpt', got" in line


def test_a_checkpoint_without_its_config_starts_nothing(run: Path, said: Said) -> None:
    """Today's settings, or another seed, must not go on from weights that were trained with others."""
    (run / "config.yaml").unlink()
    (run / "result.json").unlink()
    for resume in ([], ["--resume"]):
        words = ["train", "--config", run.parent / "recipe.yaml", "--out", run, "--quiet"]
        (run.parent / "recipe.yaml").write_text("data: digits-lt\nseed: 1\n")
        status, line = said(*words, *resume)
        assert status == 2
        assert f"--out must be a run's folder or a new one, got '{run}' with last.ckpt and without config.yaml" in line


def test_other_data_is_refused(run: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings, and samples that are others since, as of a list that was edited."""
    import dataclasses

    from lt_kernels.train.run import training

    load = training.load_data

    def less(config: object) -> object:
        data = load(config)
        counts = torch.bincount(data.train[1][:-1], minlength=data.num_classes)
        return dataclasses.replace(data, train=tuple(part[:-1] for part in data.train), class_counts=counts)

    monkeypatch.setattr(training, "load_data", less)
    status, line = said(*unfinished(run))
    assert status == 2
    assert f"'{run}/last.ckpt' is of a run on other data: training samples were 304, and are 303" in line


def without(result: dict, name: str) -> dict:
    return {key: value for key, value in result.items() if key != name}


ODD_RESULTS = {
    "empty": lambda result: "",
    "cut short": lambda result: json.dumps(result)[:200],
    "a list": lambda result: "[1, 2]",
    "a word": lambda result: '"done"',
    "too deep": lambda result: "[" * 100_000,
    "no accuracy": lambda result: json.dumps(without(result, "accuracy")),
    "words for numbers": lambda result: json.dumps({**result, "accuracy": {"all": "high"}}),
    "no mean accuracy": lambda result: json.dumps({**result, "accuracy": {"few": 1.0}}),
    "a number for a list": lambda result: json.dumps({**result, "per_class": 3}),
    "truth for a number": lambda result: json.dumps({**result, "seconds": True}),
    "samples without names": lambda result: json.dumps({**result, "samples": {}}),
    "other settings": lambda result: json.dumps({**result, "config": {**result["config"], "seed": 7}}),
    "settings that are none": lambda result: json.dumps({**result, "config": {"seed": "x"}}),
    "settings of no kind": lambda result: json.dumps({**result, "config": 3}),
}


@pytest.mark.parametrize("name", ODD_RESULTS)
def test_an_odd_result_is_named(run: Path, said: Said, name: str) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(ODD_RESULTS[name](result))
    for words in (["analyze", run], ["shift", run], ["train", "--resume", "--out", run]):
        status, line = said(*words)
        assert status == 2
        assert "result.json" in line or "seed must be" in line


def test_files_that_are_no_text_or_no_files_are_named(run: Path, said: Said) -> None:
    (run / "result.json").write_bytes(b"\xff\xfe\x00")
    assert said("analyze", run) == (2, f"lt-kernels analyze: '{run}/result.json' must be a text in UTF-8, "
                                       "got byte 0 that is none\n")  # fmt: skip
    (run / "result.json").unlink()
    os.mkfifo(run / "result.json")
    status, line = said("analyze", run)
    assert status == 2
    assert f"'{run}/result.json' is no regular file" in line
    (run / "result.json").unlink()
    (run / "result.json").mkdir()
    assert said("analyze", run)[0] == 2


def test_an_odd_record_is_named(run: Path, said: Said) -> None:
    path = run / "components.csv"
    lines = path.read_text().splitlines()
    for odd in (lines[:-1], [lines[0].replace("offset", "x"), *lines[1:]], [*lines, "1,2"], [*lines, "a,b,c,d,e,f"]):
        path.write_text("\n".join(odd))
        status, line = said("analyze", run)
        assert status == 2
        assert f"'{path}' must" in line


COMPARISON = ["compare", "--data", "digits-lt", "--methods", "ce", "--seeds", "1", "--epochs", "1", "--quiet"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "out"
    assert cli.main([*COMPARISON, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "odd",
    ["", "epoch,step\n1,2\n", "epoch,step,loss,seconds\n", "epoch,step,loss,seconds\n1,2,high,3\n",
     "epoch,step,loss,seconds\n1,2\n", "epoch,step,loss,seconds\n1,2,,3\n", 'epoch,step,loss,seconds\n"1,2'],
)  # fmt: skip
def test_an_odd_table_is_named(compared: Path, said: Said, odd: str) -> None:
    path = compared / "ce" / "seed-0" / "metrics.csv"
    whole = path.read_text()
    path.write_text(odd)
    status, line = said(*COMPARISON, "--out", compared, "--resume")
    path.write_text(whole)
    assert status == 2
    assert f"'{path}' must " in line


@pytest.mark.parametrize("odd", ["", "methods_compared: ce", "methods_compared: [1]", "data: digits-lt", "[]",
                                 "methods_compared: ['../../elsewhere']", "methods_compared: []"])  # fmt: skip
def test_an_odd_comparison_is_named(compared: Path, said: Said, odd: str) -> None:
    mark = compared / "comparison.yaml"
    whole = mark.read_text()
    mark.write_text(odd)
    found = [said("analyze", compared), said("shift", "--data", "digits-lt", "--methods", "ce", "--from", compared)]
    mark.write_text(whole)
    for status, line in found:
        assert status == 2
        assert "comparison.yaml'" in line
