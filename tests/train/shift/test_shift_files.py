"""Where the settings of a shift come from, and the published rows below its own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.data import load
from lt_kernels.data.shift import shifted_tests
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.shift.evaluate import ShiftResult
from lt_kernels.train.shift.report import write_shift


def test_the_settings_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: digits-lt.yaml\nepochs: 1\nwarmup_epochs: 0\nimbalance: 10\nvariants: {soft: {method: la, tau: 0.5}}\n"
    )
    words = ["shift", "--config", str(recipe), "--methods", "ce,variants", "--seeds", "1", "--jobs", "1", "--quiet"]
    assert cli.main([*words, "--set", "lr=0.05", "--from", str(tmp_path / "runs")]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"ce", "soft", "shift", "comparison.yaml"}
    config = load_run(tmp_path / "runs" / "soft" / "seed-0")[0]
    assert (config.lr, config.imbalance, config.epochs, config.method_options) == (0.05, 10, 1, {"tau": 0.5})
    again = [*words, "--set", "lr=0.06", "--from", str(tmp_path / "runs")]
    assert cli.main(again) == 2, "the file's settings, not those of the comparison in the folder"
    assert "lr must be 0.05" in capsys.readouterr().err


def test_published_rows_stand_below_runs_of_their_network(tmp_path: Path) -> None:
    """Hong et al. (2021), by literal numbers."""
    data = load("digits-lt", imbalance=10)
    tests = shifted_tests(data)
    config = TrainConfig(data="imagenet-lt", network="resnext50", method="lade")
    result = ShiftResult("lade", config, "uniform", [50.0] * 11, [60.0] * 11)
    write_shift([result], tests, tmp_path)
    with (tmp_path / "shift.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows][2:] == [
        "best of ce, causal norm, bs (published)",
        "the same, compensated (published)",
        "lade (published)",
    ]
    assert [rows[2][name] for name in ("forward 50", "uniform", "backward 50")] == ["66.3", "52.1", "39.7"]
    assert " ".join(list(rows[4].values())[3:]) == "67.4 64.8 61.3 58.6 55.2 53.0 51.2 49.8 49.2 49.3 50.0"
    text = (tmp_path / "shift.md").read_text()
    assert text.endswith("\nPublished: LADE poster, Hong et al. 2021, table 2, shifted test sets.\n")
    assert "**60.0**" in text
    assert "**67.4**" not in text
    assert json.loads((tmp_path / "shift.json").read_text())["published"]["lade"][0] == 67.4
    other = ShiftResult("lade", config.replace(network="resnet50"), "uniform", [50.0] * 11, [60.0] * 11)
    write_shift([other], tests, tmp_path)
    assert "ublished" not in (tmp_path / "shift.md").read_text() + (tmp_path / "shift.json").read_text()
