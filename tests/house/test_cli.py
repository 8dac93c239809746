"""The command line: what it answers without the trainer, and to words that it does not understand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lt_kernels import cli

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {"lightning", "rich", "yaml", "matplotlib", "sklearn", "tensorboard", "torchmetrics"}
# The package is imported without any of the extras, once; each command runs in a process that is forked from there.
BLOCKED = """
import json, os, sys
class Blocker:
    blocked = set(json.loads(sys.argv[1]))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Blocker())
from lt_kernels.cli import main
answers = []
for number, (blocked, words) in enumerate(json.loads(sys.argv[2])):
    process = os.fork()
    if process == 0:
        Blocker.blocked = set(blocked)
        for stream, name in (sys.stdout, "out"), (sys.stderr, "err"):
            os.dup2(os.open(f"{number}.{name}", os.O_CREAT | os.O_WRONLY), stream.fileno())
        code = main(words)
        early = [name for name in ("lightning", "matplotlib", "sklearn") if name in sys.modules]
        assert not early, f"imported too early: {early}"
        sys.exit(code)
    answers.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(json.dumps(answers))
"""
DOCTOR = ["doctor"]
TRAINS = [["train", "--config", "digits-lt"], ["compare", "--data", "digits-lt", "--methods", "ce"]]
MISSING = [["lightning"], sorted(EXTRAS)]
CALLS = [(EXTRAS, DOCTOR), *((missing, words) for missing in MISSING for words in TRAINS)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of the CALLS, after which nothing else lies in the folder where they were made."""
    folder = tmp_path_factory.mktemp("without")
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    calls = json.dumps([(sorted(missing), words) for missing, words in CALLS])
    command = [sys.executable, "-c", BLOCKED, json.dumps(sorted(EXTRAS)), calls]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=surroundings, timeout=100)
    assert done.returncode == 0, done.stderr
    said = [tuple((folder / f"{number}.{name}").read_text() for name in ("out", "err")) for number in range(len(CALLS))]
    assert len(list(folder.iterdir())) == 2 * len(CALLS)
    return [(status, *texts) for status, texts in zip(json.loads(done.stdout), said)]


def test_doctor_works_without_the_trainer(answers: list[tuple[int, str, str]]) -> None:
    status, out, errors = answers[0]
    assert status == 0, errors
    assert "torch" in out


@pytest.mark.parametrize("place", [0, 1], ids=["lightning alone", "every extra"])
def test_a_missing_trainer_names_the_extra(place: int, answers: list[tuple[int, str, str]]) -> None:
    for words, (status, _, errors) in zip(TRAINS, answers[1 + 2 * place : 3 + 2 * place], strict=True):
        assert status == 2
        assert errors.startswith(f"lt-kernels {words[0]}: ")
        assert "pip install 'lt-kernels[train]'" in errors
        assert "Traceback" not in errors


def test_a_command_ends_without_a_last_look_for_garbage() -> None:
    """Of what torch has made, which takes Python a second."""
    program = "import atexit, gc, runpy, sys; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
    program += "sys.argv[1:] = ['--version']; runpy.run_module('lt_kernels', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0
    assert done.stdout.endswith("\nTrue\n")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["compare", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    assert "usage: lt-kernels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["tain"], "got 'tain'"),
        (["compare", "--data", "digits-lt"], "--methods"),
        (["compare", "--data", "a", "--methods", "b", "--seeds", "three"], "--seeds: invalid int value: 'three'"),
        (["train", "--config", "a", "--speed", "3"], "unrecognized arguments: --speed 3"),
    ],
)
def test_words_that_do_not_parse(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "--config must name a YAML file"),
        (["train", "--resume"], "--config must name a YAML file"),
        (["train", "--config", "nowhere.yaml"], "config 'nowhere.yaml' cannot be read"),
        (["train", "--resume", "--out", "nowhere"], "nowhere/config.yaml' cannot be read"),
    ],
)
def test_train_names_what_is_missing(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="the extra [train] is not installed")
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_train_prints_the_accuracies_and_resumes_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning", reason="the extra [train] is not installed")
    (tmp_path / "a.yaml").write_text("data: digits-lt\nepochs: 2\nwarmup_epochs: 0\nlr: 0.05\nthreads: 1\n")
    assert (
        cli.main(["train", "--config", str(tmp_path / "a.yaml"), "--set", "method=bs", "--out", str(tmp_path / "r")])
        == 0
    )
    shown = capsys.readouterr()
    assert shown.out.startswith("bs on digits-lt: many ")
    assert "epoch 2/2: loss " in shown.err
    assert cli.main(["train", "--out", str(tmp_path / "r"), "--resume"]) == 0
    assert capsys.readouterr().out == shown.out


def test_bench_without_the_repository_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["bench"]) == 2
    assert "source distribution; unpack that, and there: make bench" in capsys.readouterr().err


def test_bench_and_doctor_read_their_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("bench", "doctor"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        assert end.value.code == 0
        assert command in capsys.readouterr().out
