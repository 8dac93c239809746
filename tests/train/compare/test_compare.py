"""A comparison: its table is what its runs' logs say, its report stands alone, and finished runs are not repeated."""

from __future__ import annotations

import base64
import contextlib
import csv
import gc
import io
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib import image

from lt_kernels import cli
from lt_kernels.data import LongTailedData
from lt_kernels.train.compare import tables
from lt_kernels.train.compare.jobs import plan, run_jobs
from lt_kernels.train.compare.report import used_settings
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.output import figures
from tests.pages import Page

METHODS = ["ce", "bs", "ldam-drw"]
WORDS = ["compare", "--data", "digits-lt", "--seeds", "2", "--epochs", "3", "--quiet", "--set", "validate_every=1"]
GROUPS = ["many", "medium", "few", "all", "gm"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert cli.main([*WORDS, "--methods", ",".join(METHODS), "--jobs", "1", "--out", str(folder)]) == 0
    return folder


def last_rows(folder: Path, method: str) -> list[dict[str, float]]:
    return [read_rows(folder / method / f"seed-{seed}")[-1] for seed in (0, 1)]


def test_the_summary_is_mean_and_spread_of_the_logs(comparison: Path) -> None:
    with (comparison / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == METHODS
    for row in rows:
        for group in GROUPS:
            values = [last[group] for last in last_rows(comparison, row["method"])]
            assert float(row[f"{group}_mean"]) == pytest.approx(sum(values) / 2)
            assert float(row[f"{group}_spread"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        seconds = [
            statistics.median(line["seconds"] for line in read_rows(comparison / row["method"] / f"seed-{seed}"))
            for seed in (0, 1)
        ]
        assert float(row["seconds_per_epoch_mean"]) == pytest.approx(sum(seconds) / 2)


def test_every_table_has_the_same_numbers(comparison: Path) -> None:
    markdown, page = (comparison / "table.md").read_text(), (comparison / "report.html").read_text()
    with (comparison / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["method", "many", "medium", "few", "all", "GM", "s/epoch"]
    for method, row in zip(METHODS, rows):
        values = [last["all"] for last in last_rows(comparison, method)]
        expected = f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
        assert row[0] == method
        assert row[4] == expected
        for cell in row:
            assert cell in markdown
            assert re.search(rf"<t[hd][^>]*>{re.escape(cell)}</t[hd]>", page)
    with (comparison / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    for run in runs:
        last = read_rows(comparison / run["method"] / f"seed-{run['seed']}")[-1]
        assert [float(run[group]) for group in GROUPS] == pytest.approx([last[group] for group in GROUPS])
    assert len(runs) == 6


def test_the_report_stands_alone(comparison: Path) -> None:
    """Nothing is fetched from elsewhere; every link is to a file that is there; each id is there once."""
    text = (comparison / "report.html").read_text()
    page = Page(text)
    assert page.outside() == []
    assert len(set(page.ids)) == len(page.ids) > 50
    links = {one for one in page.addresses if not one.startswith(("data:", "#"))}
    assert links == {path.name for path in comparison.iterdir() if path.is_file()} - {"report.html", "lt-kernels.lock"}
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{one}" for one in page.ids}
    assert {one for one in page.addresses if one.startswith("#")} <= {f"#{one}" for one in page.ids}
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    about = json.loads((comparison / "table.json").read_text())
    assert about["seeds"] == 2
    assert about["classes"] == 10
    assert about["device"] in page.text
    assert about["torch"] in page.text


def test_pictures_say_what_they_show(comparison: Path) -> None:
    with (comparison / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = Page((comparison / "report.html").read_text())
    assert len(page.pictures) == 1 + len(GROUPS) + 1 + 2
    for group, said in zip(GROUPS, page.pictures[1:]):
        means = {row["method"]: float(row[f"{group}_mean"]) for row in rows}
        high = max(means, key=lambda method: means[method])
        low = min(means, key=lambda method: means[method])
        words = f"{high} has the highest accuracy .*, {means[high]:.1f} %, {low} the lowest, {means[low]:.1f} %"
        assert re.search(words if means[high] != means[low] else "All have the same", said)
    means = {row["method"]: float(row["all_mean"]) for row in rows}
    winner = max(means, key=lambda method: means[method])
    assert f"{winner} has the highest mean class accuracy, {means[winner]:.1f} %" in page.text


def test_classes_have_pictures_of_their_samples(comparison: Path) -> None:
    page = Page((comparison / "report.html").read_text())
    samples = [one for one in page.addresses if one.startswith("data:")]
    shapes = [image.imread(io.BytesIO(base64.b64decode(one.split(",")[1])), format="png").shape[:2] for one in samples]
    assert shapes == [(8, 24)] * 8 + [(8, 16), (8, 8)]  # of 2 and of 1 training sample


def test_only_settings_that_differ_from_the_defaults_are_shown() -> None:
    default = TrainConfig().as_dict()
    configs = {"ce": {**default, "lr": 0.5}, "la": {**default, "method": "la", "lr": 0.5, "method_options": {"tau": 2}}}
    configs["la"]["epochs"] = 7
    rows = [list(row) for row in used_settings(configs).rows]
    assert rows == [
        ["epochs", f"ce: {default['epochs']}; la: 7", str(default["epochs"])],
        ["lr", "0.5", str(default["lr"])],
        ["options of la", '{"tau": 2}', "{}"],
    ]


def test_the_table_and_the_report_are_named(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--methods", ",".join(METHODS), "--jobs", "1", "--out", str(comparison)]
    before = {path: path.stat().st_mtime_ns for path in comparison.glob("*/*/result.json")}
    assert cli.main([*words, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in comparison.glob("*/*/result.json")} == before
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"report: {comparison / 'report.html'}"
    with (comparison / "table.csv").open(newline="") as file:
        for cell in next(row for row in csv.reader(file) if row[0] == "bs"):
            assert cell in out


def test_a_folder_in_use_and_a_changed_setting_are_refused(
    comparison: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--methods", "ce", "--jobs", "1", "--out", str(comparison)]
    assert cli.main(words) == 2
    assert f"--out {str(comparison)!r} is not empty" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--set", "lr=0.25"]) == 2
    assert re.search(r"--resume: lr must be .* got 0\.25", capsys.readouterr().err)


@pytest.mark.slow
def test_two_at_a_time_is_the_same_as_one(comparison: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--jobs", "2", "--out", str(tmp_path / "second")]
    assert cli.main([*words, "--methods", "bs,ce"]) == 0
    for method in ("bs", "ce"):
        pairs = zip(last_rows(comparison, method), last_rows(tmp_path / "second", method))
        assert all(first[name] == second[name] for first, second in pairs for name in ("loss", *GROUPS))


BAD_WORDS = [
    (["--methods", "ce,bs,ce"], r"--methods must name at least one method, each once, got 'ce,bs,ce'"),
    (["--methods", ","], r"--methods must name at least one method"),
    (["--methods", "ce,bss"], r"method .*got 'bss' \(did you mean 'bs'\?\)"),
    (["--methods", "ce", "--seeds", "0"], r"--seeds must be at least 1, got 0"),
    (["--methods", "ce", "--jobs", "0"], r"--jobs must be at least 1, got 0"),
    (["--methods", "ce", "--epochs", "0"], r"epochs must be an integer of at least 1, got 0"),
    (["--methods", "ce", "--imbalance", "0.1"], r"imbalance must be .*got 0\.1"),
    (["--methods", "ce", "--set", "metod=bs"], r"config key must be one of .*'metod'"),
    (["--methods", "la", "--set", "methods.la.tua=2"], r"method_options of la must be one of tau.*'tua'"),
    (["--methods", "la", "--set", "method_options.tau=2"], r"method_options must be given as methods\.NAME"),
    (["--methods", "ce", "--data", "cifar"], r"--data must be one of .*digits-lt.*got 'cifar'"),
]


@pytest.mark.parametrize(("words", "message"), BAD_WORDS, ids=[" ".join(case[0]) for case in BAD_WORDS])
def test_bad_arguments_are_named_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--data", "digits-lt", "--out", str(tmp_path / "out"), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_runs_go_round_by_seed() -> None:
    jobs = plan({"data": "digits-lt"}, ["ce", "bs"], 2, Path("x"), 1)
    assert [(job.config.method, job.config.seed) for job in jobs] == [("ce", 0), ("bs", 0), ("ce", 1), ("bs", 1)]
    assert jobs[3].folder == Path("x/bs/seed-1")
    with pytest.raises(ConfigError, match="seeds"):
        plan({}, ["ce"], 0, Path("x"), 1)


def test_a_finished_run_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    settings = {"data": "digits-lt", "epochs": 1, "warmup_epochs": 0}
    with contextlib.closing(run_jobs(plan(settings, ["ce"], 2, tmp_path, 1), 1)) as runs:
        gc.freeze()  # what tests before this one have left is not looked at
        gc.disable()
        try:
            held = [sum(issubclass(type(held), LongTailedData) for held in gc.get_objects()) for _ in runs]
        finally:
            gc.enable()
            gc.unfreeze()
    assert held == [0, 0]


def test_spread_is_the_sample_standard_deviation() -> None:
    assert tables.spread([1.0, 2.0, 4.0]).deviation == pytest.approx(1.5275252316519468)
    assert tables.spread([1.0, 2.0, 4.0]).text(2) == "2.33 ± 1.53"
    assert tables.spread([3.0]).text() == "3.0"


def test_many_classes_are_averaged_in_ranges_of_like_counts() -> None:
    counts = np.geomspace(1, 10_000, 400).round()
    accuracy = np.log10(counts) * 25
    x, y = figures.class_curve(counts, accuracy)
    assert len(x) == figures.BINS
    assert np.allclose(y, np.log10(x) * 25)
    few = figures.class_curve(np.array([5.0, 1.0, 9.0]), np.array([50.0, float("nan"), 90.0]))
    assert [part.tolist() for part in few] == [[5.0, 9.0], [50.0, 90.0]]
