"""Shifted test sets by literal counts, the priors that logits hold, and the command against numbers computed here."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

import pytest
import torch
from tolerances import assert_close

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from matplotlib import image

from lt_kernels import cli
from lt_kernels.data import load
from lt_kernels.data.shift import by_frequency, shifted_counts, shifted_tests
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.methods.build import method_names
from lt_kernels.train.model.predictions import predict
from lt_kernels.train.model.scores import score
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.shift.evaluate import SCALED, held_prior, logits_hold, predict_shifted

DIGITS = [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]
METHODS = ["ce", "la", "ldam"]
WORDS = ["shift", "--data", "digits-lt", "--seeds", "2", "--jobs", "1", "--quiet"]
QUICK = ["--set", "epochs=2", "--set", "warmup_epochs=1", "--set", "validate_every=2", "--set", "methods.la.tau=0.5"]


@pytest.mark.parametrize(
    ("imbalance", "counts"),
    [
        (50, [50, 32, 20, 13, 8, 5, 3, 2, 1, 1]),
        (25, [50, 34, 24, 17, 11, 8, 5, 4, 2, 2]),
        (10, [50, 38, 29, 23, 17, 13, 10, 8, 6, 5]),
        (5, [50, 41, 34, 29, 24, 20, 17, 14, 11, 10]),
        (2, [50, 46, 42, 39, 36, 34, 31, 29, 27, 25]),
        (1, [50] * 10),
    ],
)
def test_counts_of_the_shifted_sets(imbalance: int, counts: list[int]) -> None:
    assert shifted_counts(DIGITS, 50, imbalance).tolist() == counts
    assert shifted_counts(DIGITS, 50, imbalance, "backward").tolist() == counts[::-1]
    shuffled = [3, 9, 0, 5, 1, 8, 2, 7, 4, 6]
    moved = shifted_counts([DIGITS[label] for label in shuffled], 50, imbalance)
    assert moved.tolist() == [counts[label] for label in shuffled]


def test_of_equally_frequent_classes_the_last_comes_first() -> None:
    assert by_frequency([3, 1, 3, 2]).tolist() == [2, 0, 3, 1]
    assert shifted_counts([3, 1, 3, 2], 100, 8).tolist() == [50, 12, 100, 25]
    assert shifted_counts([3, 1, 3, 2], 100, 8, "backward").tolist() == [25, 100, 12, 50]
    assert shifted_counts([7], 9, 4).tolist() == [9]


def test_a_shifted_set_has_the_first_samples_of_each_class() -> None:
    data = load("digits-lt", imbalance=10)
    tests = shifted_tests(data)
    names = [*(f"forward {ratio}" for ratio in (50, 25, 10, 5, 2)), "uniform"]
    assert [test.name for test in tests] == [*names, *(f"backward {ratio}" for ratio in (2, 5, 10, 25, 50))]
    for test in tests:
        rows = test.rows.tolist()
        for label, count in enumerate(test.counts.tolist()):
            of_class = [row for row, y in enumerate(data.test[1].tolist()) if y == label]
            assert [row for row in rows if row in set(of_class)] == of_class[:count]
    assert sum(shifted_tests(data, most=20)[0].counts.tolist()) == sum([20, 12, 8, 5, 3, 2, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((DIGITS, 0, 2), "most"),
        ((DIGITS, 5, 0.5), "imbalance"),
        ((DIGITS, 5, 2, "up"), "direction"),
        (([], 5, 2), "cl"),
    ],
)
def test_bad_shifts_are_named(arguments: tuple, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        shifted_counts(*arguments)


def test_a_test_set_too_small_and_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"most must be in 1\.\.50"):
        shifted_tests(load("digits-lt"), most=51)
    with pytest.raises(ValueError, match="one class a sample"):
        shifted_tests(load("digit-scenes", most=20, imbalance=2))


KINDS = {"ce": "source", "focal-lwr": "source", "bs": "uniform", "arb-batch": "uniform", "lade": "uniform"}
KINDS |= {"cb": "weighted", "ce-sqrt": "root", "crt": "uniform", "ldam": "cosines", "dbm-bs-lwr": "cosines"}
KINDS |= {"zero-offset": "source", "tau-norm": "nothing", "pc-softmax": "uniform", "sphereface": "nothing"}


def test_what_logits_hold_is_said_of_every_method() -> None:
    assert {name: logits_hold(name) for name in KINDS} == KINDS
    assert {name for name in method_names() if logits_hold(name) == "cosines"} == set(SCALED)
    with pytest.raises(ConfigError, match="did you mean 'bs'"):
        logits_hold("bss")


def test_the_document_says_of_every_method_what_its_logits_hold() -> None:
    text = (Path(__file__).parents[3] / "docs" / "label_shift.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE)
    told = {(name, kind) for kind, names in rows for name in re.findall(r"`([\w-]+)`", names)}
    assert told == {(name, logits_hold(name)) for name in method_names()}


def test_the_prior_in_the_logits() -> None:
    counts = torch.tensor(DIGITS).double()
    weight = (1 - 0.99) / (1 - 0.99**counts)
    cases = [
        ("ce", {}, "leave", counts),
        ("bs", {}, "leave", torch.ones(10).double()),
        ("la", {"tau": 2.0}, "leave", 1 / counts),
        ("pc-softmax", {"tau": 0.5}, "leave", counts.sqrt()),
        ("ce-sqrt", {}, "leave", counts.sqrt()),
        ("cb", {"beta": 0.99}, "leave", counts * weight),
        ("dbm-bs", {}, "scale", torch.ones(10).double()),
        ("cosface", {}, "scale", counts),
    ]
    data = load_data(TrainConfig())
    for method, options, cosines, expected in cases:
        config = TrainConfig(method=method, method_options=options)
        found = held_prior(config, data.class_counts, build_module(config, data), cosines)
        assert_close(found / found.sum(), expected / expected.sum(), name=method)
    for method in ("ldam", "tau-norm"):
        config = TrainConfig(method=method)
        assert held_prior(config, data.class_counts, build_module(config, data), "leave") is None


def test_where_the_prior_stays_nothing_moves() -> None:
    data = load_data(TrainConfig())
    module = build_module(TrainConfig(), data)
    plain, (same, other) = predict_shifted(
        module, data.test[0], data.class_counts, [3 * data.class_counts, data.class_counts.flip(0)]
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shift") / "runs"
    assert cli.main([*WORDS, *QUICK, "--methods", ",".join(METHODS), "--from", str(folder)]) == 0
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(folder: Path, method: str) -> dict[tuple[str, str], float]:
    """Percent by (prior, test set): argmax of z, and of z less the prior that it holds plus the test set's."""
    counts = torch.tensor(DIGITS).double()
    _, data, module = load_run(folder)
    with torch.no_grad():
        logits = module(data.test[0]).double()
    held = {"ce": counts.log(), "la": 0.5 * counts.log()}.get(method)
    found = {}
    for test in shifted_tests(data):
        target = data.test[1][test.rows]
        share = (test.counts / test.counts.sum()).double()
        moved = {"as trained": logits} | ({} if held is None else {"compensated": logits - held + share.log()})
        for prior, values in moved.items():
            found[prior, test.name] = 100 * (values[test.rows].argmax(1) == target).double().mean().item()
    return found


def test_every_number_is_what_the_formula_gives(runs: Path) -> None:
    rows = lines(runs / "shift" / "shift_runs.csv")
    assert len(rows) == 2 * 11 * (2 * 2 + 1)
    for method in METHODS:
        for seed in (0, 1):
            mine = [row for row in rows if row["method"] == method and row["seed"] == str(seed)]
            found = {(row["prior"], row["test"]): float(row["accuracy"]) for row in mine}
            assert found == pytest.approx(by_hand(runs / method / f"seed-{seed}", method))


def test_the_tables_are_mean_and_spread_of_the_runs(runs: Path) -> None:
    rows, markdown = lines(runs / "shift" / "shift_runs.csv"), (runs / "shift" / "shift.md").read_text()
    table = lines(runs / "shift" / "shift.csv")
    assert [row["method"] for row in table] == ["ce", "ce", "la", "la", "ldam"]
    for row in table:
        for name in list(row)[3:]:
            same = [one for one in rows if one["method"] == row["method"] and one["prior"] == row["prior"]]
            values = [float(one["accuracy"]) for one in same if one["test"] == name]
            assert row[name] == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
            assert row[name] in markdown
    assert table[-1]["logits hold"] == "cosines"
    pixels = image.imread(runs / "shift" / "shift.png")
    assert pixels.shape[1] > 1500


def test_finished_runs_are_not_trained_again_and_their_folders_do_as_well(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/result.json")}
    assert len(before) == 6
    assert cli.main([*WORDS, "--methods", "la,ce", "--from", str(runs), "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"shift: {tmp_path / 'a' / 'shift.md'}"
    assert cli.main(["shift", str(runs / "la"), "--out", str(tmp_path / "b")]) == 2
    assert "holds none" in capsys.readouterr().err
    seeds = [str(runs / "la" / f"seed-{seed}") for seed in (0, 1)]
    assert cli.main(["shift", *seeds, "--out", str(tmp_path / "b")]) == 0
    assert cli.main(["shift", str(runs), "--out", str(tmp_path / "c"), "--cosines", "scale", "--most", "40"]) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/*/result.json")} == before
    first, again = (lines(tmp_path / name / "shift.csv") for name in "ab")
    assert first[:2] == again
    assert len(lines(tmp_path / "c" / "shift.csv")) == 6  # LDAM compensated too


def test_a_run_read_back_predicts_what_it_did(runs: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    config, data, module = load_run(runs / "ldam" / "seed-1")
    assert torch.equal(state, torch.get_rng_state())
    assert (config.method, config.seed, module.training) == ("ldam", 1, False)
    assert score(predict(module, data.test[0]), data).groups == read_result(runs / "ldam" / "seed-1")["accuracy"]
    (tmp_path / "config.yaml").write_text("epochs: 2\n")
    with pytest.raises(ConfigError, match=r"finished run.*holds no result\.json"):
        load_run(tmp_path)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["shift", "--help"])
    assert end.value.code == 0
    assert "usage: lt-kernels shift" in capsys.readouterr().out


BAD_WORDS = [
    (["shift"], r"either folders of runs, or --data or --config"),
    (["shift", "runs", "--config", "digits-lt"], r"either folders of runs, or --data"),
    (["shift", "--config", "none.yaml", "--methods", "bs"], r"none\.yaml"),
    (["shift", "--data", "digits-lt"], r"--methods must name what to compare, such as ce,pc-softmax,bs,lade, got none"),
    (["shift", "--data", "digits-lt", "--methods", "bss"], r"did you mean 'bs'"),
    (["shift", "--data", "digits-lt", "--methods", "bs", "--jobs", "0"], r"--jobs must be at least 1, got 0"),
    (["shift", "--data", "digits", "--methods", "bs"], r"--data must be one of .*digits-lt"),
    (["shift", "nowhere"], r"runs must be folders of runs.*'nowhere'"),
]


@pytest.mark.parametrize(("words", "message"), BAD_WORDS, ids=[" ".join(case[0]) for case in BAD_WORDS])
def test_bad_arguments_are_named(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_another_data_set_and_other_settings_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*WORDS, "--methods", "la", "--from", str(runs), "--set", "lr=0.3"]) == 2
    assert re.search(r"lr must be 0\.1.*got 0\.3", capsys.readouterr().err)
    other = tmp_path / "other"
    words = [
        "--methods",
        "ce",
        "--seeds",
        "1",
        "--set",
        "imbalance=10",
        "--set",
        "epochs=1",
        "--set",
        "warmup_epochs=0",
    ]
    assert cli.main([*WORDS, *words, "--from", str(other)]) == 0
    assert cli.main(["shift", str(runs), str(other)]) == 2
    assert "imbalance is 100.0 and 10.0" in capsys.readouterr().err
