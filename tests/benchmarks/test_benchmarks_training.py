"""Steps of training: ours and the eager losses agree, a wrong one gets no time, and the table is made of the rows."""

from __future__ import annotations

import pytest
import torch

from benchmarks import results, training
from benchmarks.tables import readme

pytest.importorskip("lightning", reason="the harness needs the extra [train]")


@pytest.mark.parametrize("method", training.METHODS)
def test_both_train_the_same(method: str) -> None:
    both = training.steps(method, "digits-lt")
    for _ in range(3):
        assert training.differs(both) < 1e-5
    ours, theirs = (step.module.head.weight for step in both.values())
    torch.testing.assert_close(ours, theirs)


def test_a_wrong_loss_gets_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    plain = training.EagerHead.forward
    monkeypatch.setattr(training.EagerHead, "forward", lambda self, *batch: plain(self, *batch) * 1.001)
    arguments = ["--data", "digits-lt", "--method", "ce", "--threads", "1", "--out", str(tmp_path)]
    assert training.main(arguments) == 1
    (path,) = tmp_path.glob("*.csv")
    assert {row.metric for row in results.read(path)} == {"wrong"}
    assert readme.training_tables(tmp_path) == ""


def test_measured_steps_become_a_table(tmp_path) -> None:
    arguments = ["--data", "digits-lt", "--threads", "1", "--seconds", "0.02", "--out", str(tmp_path)]
    assert training.main([*arguments, "--method", "bs-lwr"]) == 0
    (path,) = tmp_path.glob("*.csv")
    rows = results.read(path)
    assert {(row.provider, row.metric) for row in rows} >= {("ours", "error"), ("ours", "time"), ("eager", "time")}
    assert all(row.p50 > 0 for row in rows if row.metric == "time")
    made = readme.training_tables(tmp_path)
    time = {row.provider: row.p50 for row in rows if row.metric == "time"}
    assert f"| bs-lwr | {1e3 / time['ours']:.1f} | {1e3 / time['eager']:.1f} |" in made
    assert readme.bench_tables(tmp_path) == ""


def test_unknown_data_names_the_known() -> None:
    with pytest.raises(ValueError, match="stdlib-words"):
        training.steps("ce", "nothing")
