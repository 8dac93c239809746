"""The analyses of finished runs: their numbers by hand, their tables, what is recorded over the epochs, the command."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib import image

from lt_kernels import cli
from lt_kernels.train.analysis import report, tables
from lt_kernels.train.analysis.entries import ENTRIES
from lt_kernels.train.analysis.measures import Analysis, analyze, blocks, calibration, groups_of, histogram
from lt_kernels.train.analysis.report import find_runs, name_runs
from lt_kernels.train.model.readings import Reading
from tests.pages import Page

# Three classes in the plane: 0 is rare, 1 frequent, 2 in between. Each has two test samples.
COUNTS = torch.tensor([2, 200, 50])
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
FEATURES = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [0.0, 3.0], [-2.0, 0.0], [-2.0, 2.0]])
TARGET = torch.tensor([0, 0, 1, 1, 2, 2])
TRAIN = (torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-6.0, 1.0]]), torch.tensor([0, 1, 1, 2]))


def literal(**changes: Any) -> Analysis:
    logits = FEATURES @ WEIGHT.T
    means = {
        "positive": torch.tensor([0.5, 4.0, 2.0]),  # (1 + 0)/2, (2 + 6)/2, (2 + 2)/2
        "negative": torch.tensor([-1.0, 2.0, -0.25]),  # (-2 - 2)/4, (4 + 4)/4, -1/4
        "log_classes": math.log(3),
    }
    settings: dict[str, Any] = {
        "class_counts": COUNTS,
        "weight": WEIGHT,
        "train": TRAIN,
        "test": (FEATURES, TARGET),
        "prediction": logits.argmax(1),
        "confidence": torch.tensor([0.6, 0.9, 0.7, 1.0, 0.8, 0.5]),
        "logits": (logits, TARGET),
        "logit_means": means,
        "components": {"attraction": torch.tensor([0.1, 0.2, 0.3]), "repulsion": torch.tensor([0.4, 0.5, 0.6])},
    }
    return analyze("one", Reading(**{**settings, **changes}), ("a", "b", "c"))


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_predictions_accuracy_and_false_positives() -> None:
    found = literal()
    # logits: [1, 0, -1], [0, 4, 0], [0, 2, 0], [0, 6, 0], [-2, 0, 2], [-2, 4, 2]: samples 1 and 5 go to class 1
    assert found.order.tolist() == [1, 2, 0]
    assert found.accuracy.tolist() == [50, 100, 50]
    assert found.false_positives.tolist() == [0, 2, 0]
    assert found.cumulative.tolist() == [2, 2, 2]
    rows = rows_of(tables.false_positives([found]))
    assert [row["name"] for row in rows] == ["b", "c", "a"]
    assert [float(row["cumulative"]) for row in rows] == [2, 2, 2]
    assert [row["training_samples"] for row in rows] == ["200", "50", "2"]


def test_offsets_are_half_of_mean_times_weight() -> None:
    found = literal(centers=torch.tensor([[2.0, 9.0], [9.0, 3.0], [4.0, 9.0]]))
    assert found.offsets["test features"].tolist() == [0.25, 2.0, 1.0]
    assert found.offsets["training features"].tolist() == [2.0, 1.5, 3.0]
    assert found.offsets["centres"].tolist() == [1.0, 3.0, -2.0]
    assert set(literal().offsets) == {"test features", "training features"}


def test_angles_are_degrees_of_the_own_class() -> None:
    found = literal()
    assert found.angles["weight"] == pytest.approx([0, 90, 0, 0, 0, 45])
    first = math.degrees(math.atan2(1.0, 0.5))  # class 0's mean is (1/2, 1)
    last = math.degrees(math.atan2(1.0, 2.0))  # class 2's is (-2, 1)
    assert found.angles["mean"] == pytest.approx([first, 90 - first, 0, 0, last, 45 - last])
    rows = {(row["angle_to"], row["classes"]): row for row in rows_of(tables.angles([found]))}
    for label in ("50", "medium, 1 class"):
        row = rows["weight", label]
        numbers = [float(row[name]) for name in ("mean", "quarter", "median", "three_quarters")]
        assert numbers == pytest.approx([22.5, 11.25, 22.5, 33.75])
        assert row["test_samples"] == "2"
    assert found.summary["angle_weight_few"] == pytest.approx(45)
    assert found.summary["angle_weight_all"] == pytest.approx(135 / 6)
    assert found.summary["angle_mean_medium"] == pytest.approx(22.5)


def test_similarity_and_affinity_are_in_the_order_of_the_counts() -> None:
    found = literal()
    values = found.similarity.values
    assert np.isnan(np.diagonal(values)).all()
    assert [values[0, 1], values[0, 2], values[1, 2]] == [0, 0, -1]
    # affinity of classes 2 and 0: all of the row's product is with the other one, twice an even share
    assert found.affinity.values[1, 2] == 2
    assert found.affinity.values[1, 0] == 0
    rows = rows_of(tables.matrix([found], lambda analysis: analysis.similarity))
    assert [row["mean"] for row in rows[:3]] == ["", "0.0", "0.0"]
    assert (rows[5]["row_first"], rows[5]["column_last"], rows[5]["mean"]) == ("2", "3", "-1.0")


def test_blocks_are_means_without_the_diagonal() -> None:
    matrix = torch.arange(25.0).reshape(5, 5)
    found = blocks(matrix, 2)
    assert found.starts.tolist() == [0, 2, 5]
    assert found.values[0, 0] == (1 + 5) / 2
    assert found.values[0, 1] == (2 + 3 + 4 + 7 + 8 + 9) / 6
    assert found.values[1, 1] == (13 + 14 + 17 + 19 + 22 + 23) / 6
    whole = blocks(matrix, 5)
    assert np.isnan(whole.values[0, 0])
    assert whole.values[4, 0] == 20
    matrix[0, 1] = math.nan
    assert blocks(matrix, 2).values[0, 0] == 5


def test_calibration_closes_its_bins_on_the_right() -> None:
    found = calibration(torch.tensor([0.5, 0.6, 1.0]), torch.tensor([True, False, True]), 2)
    assert found.tolist() == [[0.0, 1.0, 0.5, 1.0], [0.5, 2.0, pytest.approx(0.8), 0.5]]
    analysis = literal()
    least, number, confidence, accuracy = analysis.calibration.T
    gap = np.nansum(number * np.abs(confidence - accuracy)) / 6
    assert gap == pytest.approx(analysis.summary["calibration_error"], rel=1e-6)
    assert number.sum() == 6
    assert np.all(np.isnan(accuracy) == (number == 0))
    assert least[1] == pytest.approx(1 / 15)


def test_histogram_tells_own_logits_from_others() -> None:
    found = histogram(torch.tensor([[0.0, 10.0], [4.0, 6.0]]), torch.tensor([1, 0]), torch.tensor([300, 30]), 2)
    assert found.edges.tolist() == [0, 5, 10]
    densities = {key: value.tolist() for key, value in found.densities.items()}
    assert densities == {
        ("many", "positive"): [0.2, 0],  # 4
        ("many", "negative"): [0.2, 0],  # 0
        ("medium", "positive"): [0, 0.2],  # 10
        ("medium", "negative"): [0, 0.2],  # 6
    }


def test_summary_of_a_run() -> None:
    found = literal().summary
    assert (found["accuracy_many"], found["accuracy_few"], found["errors"]) == (100, 50, 2)
    assert found["balance_norm"] == pytest.approx(2 / 9)  # lengths 1, 2, 1
    assert found["balance_angle"] == pytest.approx(2 / 9)  # cosines 0, 0, -1 of the three pairs
    assert float(rows_of(tables.summary([literal()]))[0]["balance_dot"]) == pytest.approx(2 / 9)


def test_lengths_that_differ_by_roundings_are_alike() -> None:
    unit = torch.nn.functional.normalize(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    unit[0] *= 1 + 2**-23  # a rounding of float32
    assert literal(weight=unit).summary["balance_norm"] == 0
    unit[0] *= 1.001
    assert literal(weight=unit).summary["balance_norm"] == pytest.approx(2e-6 / 9, rel=1e-2)


def test_gradients_of_a_run_that_has_none_are_left_empty() -> None:
    other = literal(components="its loss has a margin")
    rows = rows_of(tables.components([literal(), other]))
    assert [row["attraction"] for row in rows[:3]] == [f"{float(np.float32(x))}" for x in (0.2, 0.3, 0.1)]
    assert [row["repulsion"] for row in rows[3:]] == ["", "", ""]


def test_groups_are_those_of_the_accuracies() -> None:
    found = groups_of(np.array([101, 100, 20, 19]))
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "many": [True, False, False, False],
        "medium": [False, True, True, False],
        "few": [False, False, False, True],
    }
    assert list(groups_of(np.array([3, 2]))) == ["few"]


WORDS = ["--set", "epochs=2", "--set", "warmup_epochs=0", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    config = "digits-lt"
    for method in ("ce", "ldam"):
        record = f"record={str(method == 'ce').lower()}"
        words = ["train", "--config", config, *WORDS, "--set", f"method={method}", "--set", record]
        words += ["--out", str(folder / method)]
        assert cli.main(words) == 0
    return folder


def test_the_command_writes_every_picture_and_its_numbers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", str(runs / "ce"), str(runs / "ldam")]) == 0
    out = runs / "analysis"
    assert capsys.readouterr().out.splitlines()[-1] == f"analysis: {out / 'analysis.html'}"
    page = (out / "analysis.html").read_text()
    stems = [entry.stem for entry in ENTRIES]
    for stem in stems:
        pixels = image.imread(out / f"{stem}.png")[:, :, :3]
        assert pixels.shape[0] > 300
        assert len(np.unique((255 * pixels[::3, ::3]).astype(int) @ [65536, 256, 1])) > 20
        first = "ldam" if stem == "margins" else "ce"  # which has none
        assert rows_of((out / f"{stem}.csv").read_text())[0]["run"] == first
    read = Page(page)
    assert len(read.pictures) == len(stems)
    assert all(re.search("ce|ldam", said) for said in read.pictures)
    assert len(set(read.ids)) == len(read.ids)
    assert read.outside() == []
    assert all((out / one).exists() for one in read.addresses if one.endswith(".csv"))
    assert "ldam: its logits are not linear in the features" in page
    assert list((out / "tensorboard").iterdir())
    epochs = rows_of((out / "gradients_by_epoch.csv").read_text())
    assert [row["epoch"] for row in epochs] == ["1"] * 10 + ["2"] * 10


@pytest.mark.parametrize("method, missing", [("ldam", "offsets_by_epoch"), ("ce", "margins")])
def test_a_picture_of_what_no_run_has_is_not_drawn(
    method: str, missing: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [entry for entry in ENTRIES if entry.stem in ("balance", missing)]
    monkeypatch.setattr(report, "ENTRIES", few)
    assert cli.main(["analyze", str(runs / method), "--out", str(tmp_path / "out")]) == 0
    assert [path.stem for path in (tmp_path / "out").glob("*.png")] == ["balance"]


def test_accuracies_are_those_of_the_run(runs: Path) -> None:
    from lt_kernels.train.analysis.measures import analyze_run
    from lt_kernels.train.files.folder import read_result

    for method in ("ce", "ldam"):
        result = read_result(runs / method)
        assert result is not None
        assert analyze_run(method, runs / method).accuracy.tolist() == pytest.approx(result["per_class"])


@pytest.mark.parametrize("missing", ["config.yaml", "result.json"])
def test_an_unfinished_run_is_named(
    missing: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "unfinished"
    folder.mkdir()
    if missing == "result.json":
        (folder / "config.yaml").write_text((runs / "ce" / "config.yaml").read_text())
    assert cli.main(["analyze", str(runs / "ce"), str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"RUN must be the folder of a {'run' if missing == 'config.yaml' else 'finished run'}" in said
    assert str(folder) in said
    assert not (tmp_path / "analysis").exists()


def test_no_run_and_a_run_twice_are_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert cli.main(["analyze", str(runs / "ce"), str(runs / "ce")]) == 2
    assert "once each" in capsys.readouterr().err


def finished(folder: Path, method: str, seed: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"method: {method}\nseed: {seed}\n")
    (folder / "result.json").write_text("{}")
    return folder


def test_a_comparison_stands_for_its_runs_of_seed_zero(tmp_path: Path) -> None:
    runs = [finished(tmp_path / method / f"seed-{seed}", method, seed) for seed in (0, 1) for method in ("bs", "ce")]
    (tmp_path / "comparison.yaml").write_text("data: digits-lt\nmethods_compared: [bs, ce]\n")
    assert find_runs([str(tmp_path)]) == runs[:2]
    assert find_runs([str(runs[3])]) == [runs[3]]


def test_runs_have_the_shortest_names_that_differ(tmp_path: Path) -> None:
    plain, other = finished(tmp_path / "ce" / "seed-0", "ce", 0), finished(tmp_path / "ce" / "seed-1", "ce", 1)
    variant = finished(tmp_path / "strong" / "seed-0", "ce", 0)
    assert name_runs([plain, finished(tmp_path / "bs" / "seed-0", "bs", 0)]) == ["ce", "bs"]
    assert name_runs([plain, variant]) == ["ce", "strong"]
    assert name_runs([plain, other]) == ["ce, seed 0", "ce, seed 1"]
    twice = [plain, other, variant]
    assert name_runs(twice) == [str(folder) for folder in twice]
