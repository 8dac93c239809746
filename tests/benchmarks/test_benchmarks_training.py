"""Steps of training: ours and the eager losses agree, a wrong one gets no time, and the table is made of the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import eager, results, training
from benchmarks.results import Row
from benchmarks.tables.readme import bench_tables
from benchmarks.tables.training import training_tables

pytest.importorskip("lightning", reason="the harness needs the extra [train]")


@pytest.mark.parametrize("method", training.METHODS)
def test_both_train_the_same(method: str) -> None:
    both = training.steps(method, "digits-lt")
    for _ in range(3):
        assert training.differs(both) < 1e-5
    ours, theirs = (step.module.head.weight for step in both.values())
    torch.testing.assert_close(ours, theirs)


def test_a_step_in_parts_is_a_step() -> None:
    """The same weights after it, and a loss that takes some of its time."""
    whole, parts = (training.steps("la-lwr", "digits-lt")["ours"] for _ in range(2))
    for _ in range(3):
        whole()
        loss, step = parts.in_parts()
        assert 0 < loss < step
    states = (one.module.state_dict() for one in (whole, parts))
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))


def measured(folder: Path, *words: str) -> tuple[int, list[Row]]:
    status = training.main(["--data", "digits-lt", "--threads", "1", *words, "--out", str(folder)])
    (path,) = folder.glob("training/*.csv")
    return status, results.read(path)


def test_a_wrong_loss_gets_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = eager.Head.forward
    monkeypatch.setattr(eager.Head, "forward", lambda self, *batch: plain(self, *batch) * 1.001)
    status, rows = measured(tmp_path, "--method", "ce")
    assert status == 1
    assert {row.metric for row in rows} == {"wrong"}
    assert training_tables([rows]) == ""


@pytest.mark.parametrize("mode", ["step", "loss"])
def test_memory_of_a_step_and_of_its_loss(mode: str) -> None:
    peak = training.peak_here("bs-lwr", "digits-lt", "eager", mode, "cpu")
    if peak is None:
        pytest.skip("the system does not tell the high-water mark")
    assert 0 <= peak < 2**28


def test_measured_steps_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.memory, "fresh", lambda *words: 3 * 2**20)
    status, rows = measured(tmp_path, "--seconds", "0.02", "--method", "bs-lwr")
    assert status == 0
    found = {(row.provider, row.mode, row.metric): row.p50 for row in rows}
    both = [(who, mode, metric) for who in training.PROVIDERS for mode, metric in
            (("step", "time"), ("epoch", "time"), ("loss", "share"))]  # fmt: skip
    assert found.keys() >= {("ours", "step", "error"), *both}
    assert all(found[place] > 0 for place in both)
    assert all(found[who, "loss", "share"] < 1 for who in training.PROVIDERS)
    assert found["ours", "epoch", "time"] == pytest.approx(found["ours", "step", "time"] * 1e-3 * 10, rel=1e-3)
    made = training_tables([rows])
    assert f"| bs-lwr | {1e3 / found['ours', 'step', 'time']:.3g} (" in made
    assert f" | {found['eager', 'step', 'ratio']:.3g}x (" in made
    assert made.endswith(" % | 3 | 3 | 3 | 3 |")
    assert bench_tables(tmp_path) == ""


def test_networks_and_dtypes_have_tables_of_their_own() -> None:
    shared = {"operator": results.TRAINING, "case": "hanzi-lt bs", "mode": "step", "metric": "time", "unit": "ms"}
    machine = {"samples": 1, "device": "Some GPU", "threads": 1, "torch": "2.13.0", "triton": "", "date": ""}
    rows = [
        Row(provider=who, dtype=dtype, sizes=f"d={d}", p50=ms, p20=ms, p80=ms, commit=commit, **shared, **machine)
        for dtype, d, ms, commit in (("float32", 64, 5.0, "abc"), ("bfloat16", 2048, 50.0, "def"))
        for who in training.PROVIDERS
    ]  # fmt: skip
    small, large = training_tables([rows]).split("\n\nhanzi-lt")
    assert "1 thread, torch 2.13.0, float32, d=64, commit abc." in small
    assert "| bs | 200 (200 .. 200) |" in small
    assert "1 thread, torch 2.13.0, bfloat16, d=2048, commit def." in large
    assert "| bs | 20 (20 .. 20) |" in large


def test_ratios_are_of_steps_side_by_side() -> None:
    """A neighbour that slows both by half in the second block changes no ratio."""
    ours = [1.0] * training.BLOCK + [2.0] * training.BLOCK + [1.0]
    assert training.ratios({"ours": ours, "eager": [3 * second for second in ours]}) == [3.0, 3.0, 3.0]


def test_unknown_data_names_the_known() -> None:
    with pytest.raises(ValueError, match="stdlib-words"):
        training.steps("ce", "nothing")
