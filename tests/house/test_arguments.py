"""The words of the command line: what is meant by a word that is not known, settings printed, completion in shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import lt_kernels
from lt_kernels import cli
from lt_kernels.system import parsing

RECIPE = "data: digits-lt\nepochs: 2\nwarmup_epochs: 0\nmethods: {la: {tau: 0.5}}\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"lt-kernels {lt_kernels.__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tain"], "lt-kernels: error: COMMAND must be one of train, .*; got 'tain' (did you mean 'train'?)"),
        (["xyz"], "got 'xyz'\n"),
        (
            ["train", "--confg", "a"],
            "lt-kernels train: error: unrecognized arguments: --confg a (did you mean '--config'?)",
        ),
        (["compare", "--data", "a", "--methods", "b", "--jbos=2"], "--jbos=2 (did you mean '--jobs'?)"),
        (["recipes", "a", "--xyz"], "unrecognized arguments: --xyz\n"),
        (["bench", "--qick"], "lt-kernels bench: error: unrecognized arguments: --qick (did you mean '--quick'?)"),
    ],
)
def test_a_word_that_is_not_known(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    first, _, last = line.partition(".*")
    assert first in said
    assert last in said
    assert said.count("error:") == 1


def test_the_settings_of_a_run_are_printed_and_are_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning", reason="the extra [train] is not installed")
    from lt_kernels.train.recipes import read_config

    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(RECIPE)
    assert cli.main(["train", "--config", "a.yaml", "--set", "method=la", "--set", "lr=0.07", "--print_config"]) == 0
    Path("b.yaml").write_text(capsys.readouterr().out)
    config = read_config("a.yaml", ["method=la", "lr=0.07"])
    assert read_config("b.yaml") == config
    assert (config.lr, config.method_options) == (0.07, {"tau": 0.5})
    assert "method_options:\n  tau: 0.5\n" in Path("b.yaml").read_text()
    assert cli.main(["train", "--config", "b.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == Path("b.yaml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "b.yaml"]  # nothing else was done


def test_the_settings_of_a_comparison_are_printed_and_are_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("lightning", "matplotlib"):
        pytest.importorskip(module, reason="the extra [train] is not installed")
    from lt_kernels.train.recipes import read_settings

    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(RECIPE)
    words = ["compare", "--data", "digits-lt", "--methods", "la", "--print_config", "--config"]
    assert cli.main([*words, "a.yaml", "--epochs", "3", "--set", "methods.la.tau=2"]) == 0
    Path("b.yaml").write_text(capsys.readouterr().out)
    assert read_settings("b.yaml") == {**read_settings("a.yaml"), "epochs": 3, "methods": {"la": {"tau": 2}}}
    assert cli.main([*words, "b.yaml"]) == 0
    assert capsys.readouterr().out == Path("b.yaml").read_text()
    assert cli.main([*words, "b.yaml", "--set", "lr=-1"]) == 2  # printed are settings that can be trained with
    assert "lr must be" in capsys.readouterr().err
    of_recipe = [word for word in words if word not in ("--data", "digits-lt")]
    assert cli.main([*of_recipe, "b.yaml"]) == 0  # the data set is then the recipe's
    assert capsys.readouterr().out == Path("b.yaml").read_text()
    for command in ("compare", "planar"):
        assert cli.main([command, "--methods", "la"]) == 2
        assert "--data must name a data set, unless --config names a recipe, got neither" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "b.yaml"]


def completed(script: str, words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of the words, after it has read the script."""
    tab = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_lt_kernels; "
    tab += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{tab}"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="the extra [train] is not installed")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "minerals").mkdir()
    assert completed(script, ["lt-kernels", "com"], tmp_path) == ["compare", "completion"]
    assert completed(script, ["lt-kernels", "compare", "--me"], tmp_path) == ["--methods"]
    assert completed(script, ["lt-kernels", "shift", "--cosines", "sc"], tmp_path) == ["scale"]
    assert sorted(completed(script, ["lt-kernels", "train", "--config", "min"], tmp_path)) == ["mine.yaml", "minerals"]
    assert completed(script, ["lt-kernels", "analyze", "min"], tmp_path) == ["minerals"]


def test_files_are_completed_in_the_words_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    shtab = pytest.importorskip("shtab", reason="the extra [train] is not installed")
    theirs = {"FILE": shtab.FILE, "PATH": shtab.FILE, "FOLDER": shtab.DIRECTORY, "RUN": shtab.DIRECTORY}
    shells = ("bash", "zsh", "fish", "tcsh")
    assert {kind: {shell: known[shell] for shell in shells} for kind, known in theirs.items()} == parsing.COMPLETED
    for shell in shells:
        assert cli.main(["completion", shell]) == 0
        assert "compare" in capsys.readouterr().out
