"""Whose a folder is: failed runs block nothing, files of others are left alone, planted links are not followed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.system import storage
from tests.injection.runs import bits, left_over, recipe, same
from tests.nursery import ROOT

COMPARE = ["compare", "--data", "digits-lt", "--seeds", "1", "--epochs", "1", "--quiet", "--jobs", "1"]


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    return recipe(tmp_path, epochs=1, checkpoint_steps=0)


def train(quick: Path, out: Path, *words: str) -> int:
    return cli.main(["train", "--config", str(quick), "--out", str(out), "--quiet", *words])


@pytest.mark.parametrize("wrong", ["method=bss", "network=mlpp", "data=digits", "imbalance=1e9", "augment=flipp"])
def test_a_run_that_failed_leaves_no_folder(quick: Path, tmp_path: Path, wrong: str) -> None:
    assert train(quick, tmp_path / "run", "--set", wrong) == 2
    assert not (tmp_path / "run").exists()


def test_a_run_that_failed_later_does_not_block_the_corrected_one(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within the first step, when its settings and tables are written."""
    from lt_kernels.train.model.classifier import Classifier

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Classifier, "training_step", fails)
    assert train(quick, tmp_path / "run", "--set", "lr=1.0") == 1
    assert "Input/output error; there was no checkpoint yet: the same command starts anew" in capsys.readouterr().err
    monkeypatch.undo()
    assert (tmp_path / "run" / "config.yaml").exists()
    assert train(quick, tmp_path / "run") == 0, "without --resume, and with another lr"
    assert left_over(tmp_path / "run") == []
    assert train(quick, tmp_path / "run") == 2, "a finished one is kept"


def fails_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from lt_kernels.train.model.classifier import Classifier

    usual = Classifier.apply_epoch

    def apply_epoch(self: Classifier, epoch: int) -> None:
        if epoch == 1:
            raise ValueError("this option cannot be used")
        usual(self, epoch)

    monkeypatch.setattr(Classifier, "apply_epoch", apply_epoch)


def test_a_run_that_failed_after_a_checkpoint_does_not_block_other_settings(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint would lead to the same error again; a run of the same settings may still go on from it."""
    run, two = tmp_path / "run", ["--set", "epochs=2"]
    with monkeypatch.context() as broken:
        fails_in_the_second_epoch(broken)
        with pytest.raises(ValueError, match="cannot be used"):
            train(quick, run, *two)
    assert (run / "failed.txt").read_text() == "ValueError: this option cannot be used\n"
    before = (run / "last.ckpt").read_bytes()
    assert train(quick, run, *two) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert (run / "last.ckpt").read_bytes() == before
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert train(quick, again, "--resume", *two) == 0
    assert train(quick, run, *two, "--set", "lr=0.02") == 0
    assert train(quick, tmp_path / "anew", *two, "--set", "lr=0.02") == 0
    assert same(bits(run), bits(tmp_path / "anew"))
    assert not any((folder / "failed.txt").exists() for folder in (run, again))
    assert train(quick, run, *two) == 2, "a finished one is kept"


def test_a_comparison_goes_on_with_a_method_mended_that_failed_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*COMPARE, "--methods", "la", "--set", "epochs=2", "--set", "checkpoint_epochs=1"]
    words += ["--out", str(tmp_path / "out")]
    with monkeypatch.context() as broken:
        fails_in_the_second_epoch(broken)
        with pytest.raises(ValueError, match="cannot be used"):
            cli.main(words)
    assert cli.main([*words, "--resume", "--set", "methods.la.tau=0.5"]) == 0


def test_a_sampler_that_scenes_cannot_have_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", "digit-scenes", "--set", "sampler=class"]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "sampler must be instance for digit-scenes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_comparison_that_failed_does_not_block_the_corrected_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*COMPARE, "--methods", "ce", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--set", "network=mlpp"]) == 2
    assert "network mlpp" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert cli.main(words) == 2, "a finished one is kept"


def test_files_of_others_are_left_alone(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no run's, with names that a run would write."""
    for name in ("metrics.csv", "tensorboard", "result.json", "config.yaml"):
        out = tmp_path / f"with {name}"
        out.mkdir()
        if name == "tensorboard":
            (out / name).mkdir()
            (out / name / "precious").write_text("mine")
        else:
            (out / name).write_text("data: digits-lt  # mine\n")
        assert train(quick, out) == 2
        assert f"{str(out)!r}" in capsys.readouterr().err
        precious = out / name / "precious" if name == "tensorboard" else out / name
        assert "mine" in precious.read_text()
        assert len(list(out.iterdir())) == 1


NAMES = ["last.ckpt", "metrics.csv", "components.csv", "result.json"]


def test_planted_links_are_not_followed(quick: Path, tmp_path: Path) -> None:
    """Others may write into the folder too, as in /tmp: every name that a run writes leads to what is somebody's."""
    out, target = tmp_path / "run", tmp_path / "target"
    target.mkdir()
    assert train(quick, out, "--set", "record=true") == 0
    for name in NAMES:
        (out / name).unlink()
        kept = name in ("last.ckpt", "result.json")  # those that are there would be read, so that these lead nowhere
        (out / name).symlink_to(target / name)
        if not kept:
            (target / name).write_text("mine")
    for name in ("last.ckpt.tmp", "config.yaml.tmp", "result.json.tmp"):
        (out / name).symlink_to(target / "mine")
    (target / "mine").write_text("mine")
    for path in (out / "tensorboard").iterdir():
        path.unlink()
    (out / "tensorboard").rmdir()
    (out / "tensorboard").symlink_to(target)
    assert train(quick, out, "--set", "record=true") == 0
    assert {path.name: path.read_text() for path in target.iterdir()} == dict.fromkeys(
        ["mine", "metrics.csv", "components.csv"], "mine"
    )
    assert not any((out / name).is_symlink() for name in (*NAMES, "tensorboard"))


def test_links_where_tables_go_are_not_followed(quick: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine"
    mine.write_text("mine")
    assert train(quick, out) == 0
    for command, names in (("analyze", ["summary.csv", "analysis.html", "accuracy.png"]), ("shift", ["shift.md"])):
        folder = tmp_path / command
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(mine)
        assert cli.main([command, str(out), "--out", str(folder)]) == 0
        assert mine.read_text() == "mine"
        assert not any((folder / name).is_symlink() for name in names)


def test_a_link_at_the_lock_is_refused(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / storage.LOCK).symlink_to(tmp_path / "mine")
    assert train(quick, tmp_path / "run") == 2
    assert f"--out '{tmp_path}/run' cannot be written: " in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_new_file_has_the_rights_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_whole(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_lock_names_its_process_and_ends_with_it(tmp_path: Path) -> None:
    """A killed process, and the lock that it leaves, are taken over; a living one is named."""
    program = f"""
import pathlib, sys
from lt_kernels.system import storage
with storage.held(pathlib.Path({str(tmp_path / "out")!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], env=surroundings, **pipes) as child:
        child.stdout.readline()
        with pytest.raises(
            storage.FolderInUse, match=rf"is being written by process {child.pid} on \S+, since [\d: -]+$"
        ):
            storage.held(tmp_path / "out").__enter__()
        child.kill()
    left = json.loads((tmp_path / "out" / storage.LOCK).read_text())
    assert left["pid"] == child.pid
    with storage.held(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / storage.LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(storage.FolderInUse), storage.held(tmp_path / "out"):
            pass
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with storage.held(tmp_path / "out"):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent is done with it
            os._exit(0)
    with storage.held(tmp_path / "out"):
        pass
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 99, b'{"pid": 1}'])
def test_a_lock_that_names_nobody(tmp_path: Path, content: bytes) -> None:
    """Its process died while it signed, or somebody else made the file."""
    (tmp_path / storage.LOCK).write_bytes(content)
    with storage.held(tmp_path):
        assert json.loads((tmp_path / storage.LOCK).read_text())["pid"] == os.getpid()


def test_what_was_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [".last.ckpt.0123456789abcdef.tmp", ".config.yaml.fedcba9876543210.tmp"]
    kept = [".hidden.tmp", "last.ckpt.tmp", ".last.ckpt.0123.tmp", "notes.0123456789abcdef.tmp"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    with storage.held(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {storage.LOCK, *kept}


@pytest.mark.parametrize("stop", ["open", "write", "fsync", "replace"])
def test_a_file_that_cannot_be_written_is_named_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")

    def fails(*_: object, **__: object) -> Callable[..., None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, stop, fails)
    with pytest.raises(OSError, match="No space left on device") as error:
        storage.write_whole(path, "after")
    monkeypatch.undo()
    assert error.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
