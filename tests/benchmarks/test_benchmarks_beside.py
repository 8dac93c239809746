"""Calls beside a busy process: the process runs only while it is to, and slowdowns are made of the times."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import beside, results
from benchmarks.results import Row


def used(process: int) -> int:
    """The processor time of a process, in the system's ticks."""
    return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell the time of a process")
def test_the_busy_process_is_stopped_and_ended() -> None:
    with beside.Busy() as busy:
        number = busy.process.pid
        with busy.running():
            before, deadline = used(number), time.monotonic() + 60
            while used(number) < before + 5:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        time.sleep(0.05)  # the signal is on its way
        stopped = used(number)
        time.sleep(0.2)
        assert used(number) == stopped
    assert busy.process.returncode is not None


def test_slowdowns_are_made_of_the_times(tmp_path: Path) -> None:
    assert beside.main(["--tiny", "--threads", "1", "--seconds", "0.002", "--out", str(tmp_path)]) == 0
    (path,) = (tmp_path / "beside").glob("*.csv")
    rows = results.read(path)
    assert {(row.operator, row.case) for row in rows} == {(case.operator, case.name) for case in beside.CASES}
    for case in beside.CASES:
        mine = [row for row in rows if row.operator == case.operator]
        figure = {(row.provider, row.mode, row.metric): row.p50 for row in mine}
        for who in beside.PROVIDERS:
            slower = figure[who, "beside", "time"] / figure[who, "alone", "time"]
            assert figure[who, "beside", "slowdown"] == pytest.approx(slower, rel=2e-3)
        ratio = figure["ours", "beside", "slowdown"] / figure["eager", "beside", "slowdown"]
        assert figure["ours", "beside", "slowdown by eager's"] == pytest.approx(ratio, rel=2e-3)


def test_the_line_says_on_which_side_of_the_bar_it_is() -> None:
    fields = dict.fromkeys(("operator", "case", "device", "dtype", "sizes", "torch", "triton", "commit", "date"), "")
    figure = {"provider": "ours", "mode": "beside", "metric": "slowdown by eager's", "unit": "times"}
    for value, word in ((1.3, "within 1.3"), (1.31, "above 1.3")):
        row = Row(**fields, **figure, p50=value, p20=value, p80=value, samples=1, threads=2)
        assert beside.line(row).endswith(word)
