"""Published figures beside a comparison's own: where they belong to its runs, with their sources, and nowhere else."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the extra [train] is not installed")
pytest.importorskip("rich", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.train import published
from lt_kernels.train.compare.beside import as_facts, cell, published_for, sources
from lt_kernels.train.compare.tables import markdown, summarize_method, table_csv
from lt_kernels.train.published import Figure

CIFAR = {"data": "cifar100-lt", "imbalance": 100.0, "network": "resnet32", "network_options": {}, "epochs": 200}


def figure(source: str, method: str, value: float, *groups: float, measure: str = "accuracy") -> Figure:
    many, medium, few = groups or (None, None, None)
    known = {"measure": measure, "data": "digits-lt", "imbalance": 100.0, "network": "mlp", "epochs": None}
    return Figure(source, "table 1", **known, method=method, all=value, many=many, medium=medium, few=few,
                  recipe="digits-lt", note="")  # fmt: skip


def result(method: str, value: float, **config: Any) -> dict[str, Any]:
    about = {**CIFAR, "method": method, "method_options": {}, "seed": 0, **config}
    return {"config": about, "accuracy": {"all": value}, "seconds_per_epoch": 1.0, "seconds": 2.0}


def test_the_table_has_the_figures_of_its_runs_and_their_sources() -> None:
    summaries = [summarize_method(method, [result(method, 50.0)]) for method in ("bs", "dbm-bs", "cosface")]
    assert markdown(summaries).splitlines() == [
        "| method | all | s/epoch | published |",
        "|---|---:|---:|---:|",
        "| bs | **50.0** | 1 | 46.3 (63.9, 46.7, 25.0) [1, 2]; 49.35 (65.77, 50.14, 29.27) [3, 4] |",
        "| dbm-bs | 50.0 | 1 | 51.3 (67.29, 50.8, 33.23) [3, 4]; 45.0 [5] |",
        "| cosface | 50.0 | 1 |  |",
        "",
        "Published: [1] Logit weight repulsion poster, state of the art; "
        "[2] Logit weight repulsion poster, ablation of projection and lambda; [3] DBM, Son et al. 2025, table 2; "
        "[4] DBM, Son et al. 2025, table 5; [5] DBM, Son et al. 2025, supplement table 2.",
    ]
    rows = list(csv.DictReader(table_csv(summaries).splitlines()))
    assert rows[1]["published"] == "51.3 (67.29, 50.8, 33.23) [3, 4]; 45.0 [5]"
    assert rows[1]["sources"].startswith("[3] DBM, Son et al. 2025, table 2; [4] DBM")
    assert (rows[2]["published"], rows[2]["sources"]) == ("", "")


OTHERS = [{"imbalance": 30.0}, {"network": "resnet10"}, {"data": "digits-lt"}, {"validation": 0.2}]


@pytest.mark.parametrize("other", [*OTHERS, {"network_options": {"width": 32}}])
def test_other_runs_have_none(other: dict[str, Any]) -> None:
    assert published_for("dbm-drw", CIFAR)
    assert published_for("dbm-drw", {**CIFAR, **other}) == ()
    summaries = [summarize_method("dbm-drw", [result("dbm-drw", 50.0, **other)])]
    assert "published" not in markdown(summaries)
    assert table_csv(summaries).startswith("method,all,s/epoch\n")


def test_cells_of_several_figures_and_of_scenes() -> None:
    found = [
        figure("A 2001", "ce", 40.0),
        figure("B 2002", "ce", 40.0, 50.0, 40.0, 30.0),
        figure("C 2003", "ce", 41.25),
    ]
    assert cell(found, sources([found])) == "40.0 (50.0, 40.0, 30.0) [1, 2]; 41.25 [3]"
    scenes = [figure("A 2001", "ce", 67.6, measure="miou")]
    assert cell(scenes, sources([scenes])) == "mIoU 67.6 [1]"
    scenes = [dataclasses.replace(scenes[0], note="mAcc 74.6")]
    assert cell(scenes, sources([scenes])) == "mIoU 67.6 (mAcc 74.6) [1]"
    assert as_facts({"ce": scenes})["published"]["ce"][0]["note"] == "mAcc 74.6"
    assert cell([], ["A"]) == ""


def test_a_comparison_writes_them_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("lightning", "sklearn", "matplotlib"):
        pytest.importorskip(module, reason="the extra [train] is not installed")
    known = (figure("Someone, 2001", "ce", 80.4), figure("Other, 2002", "bs", 85.5))
    monkeypatch.setattr(published, "figures", lambda: known)
    words = ["compare", "--data", "digits-lt", "--methods", "ce,la", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    assert cli.main([*words, "--quiet", "--set", "warmup_epochs=0", "--out", str(tmp_path / "out")]) == 0
    said = "[1] Someone, 2001, table 1"
    shown = capsys.readouterr().out
    assert "80.4 [1]" in shown
    assert said in shown
    for name in ("table.md", "report.html", "table.csv"):
        text = (tmp_path / "out" / name).read_text()
        assert "80.4 [1]" in text, name
        assert said in text, name
        assert "85.5" not in text, name
    about = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(about["published"]) == ["ce"]
    (only,) = about["published"]["ce"]
    assert (only["all"], only["many"], only["source"], only["table"]) == (80.4, None, "Someone, 2001", "table 1")
