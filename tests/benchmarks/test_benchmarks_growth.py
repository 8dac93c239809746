"""Cost as the work grows: the points of the sweeps, the fit, and the table that docs/kernels/growth.md has of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import growth, results, run
from benchmarks.growth import Line
from benchmarks.tables import kernels

ROOT = Path(__file__).resolve().parents[2]
EMPTY = "<!-- table: growth -->\nold\n<!-- end of table: growth -->\nbelow\n"


def line(figures: dict[int, float], **changes: str) -> Line:
    """Time of ours along C."""
    words = {"operator": "linear_cross_entropy", "axis": "C", "provider": "ours", "metric": "time", "unit": "ms"}
    words |= {"fixed": "N=64 d=128"} | changes
    return Line(**words, points=tuple(figures.items()))


def row(case: str, sizes: str, p50: float, provider: str = "ours", metric: str = "time") -> results.Row:
    figures = ("MiB" if metric != "time" else "ms", p50, p50, p50, 9, 2, "2.13.0", "3.7.1", "abc1234", "2026-01-01")
    return results.Row("linear_cross_entropy", case, provider, "both", "Some CPU", "float32", sizes, metric, *figures)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tiny", [False, True])
def test_a_sweep_changes_one_size(device: str, tiny: bool) -> None:
    sweeps: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for case in growth.cases(device, tiny):
        axis, point = case.name.removeprefix("along-").split("-")
        sizes = {"N": case.rows, "C": case.classes, "d": case.features}
        assert sizes[axis] == int(point)
        assert case.measures_memory
        sweeps.setdefault((case.operator, axis), []).append((case.rows, case.classes, case.features))
    assert {(operator, axis) for operator, axes in growth.AXES.items() for axis in axes} == set(sweeps)
    for points in sweeps.values():
        assert sorted(len(set(column)) for column in zip(*points)) == [1, 1, len(points)]
        assert len(points) > growth.FEWEST


def test_class_counts_reach_a_million() -> None:
    classes = {case.classes for case in growth.cases() if case.operator == "linear_cross_entropy"}
    assert {1_000, 1_000_000} <= classes


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_its_power(power: float) -> None:
    exact = line({size: 3.0 * size**power for size in (10, 40, 160, 640)})
    assert exact.exponent == pytest.approx(power)
    assert exact.bends() == []


def test_fixed_costs_do_not_enter_the_exponent() -> None:
    bent = line({1: 100.0, 10: 100.0, 100: 100.0, 1_000: 1_000.0, 10_000: 10_000.0})
    assert [size for size, _ in bent.upper] == [100, 1_000, 10_000]
    assert bent.exponent == pytest.approx(1.0)
    assert bent.bends() == [(1, 10, pytest.approx(0.0)), (10, 100, pytest.approx(0.0))]


def test_two_points_have_no_exponent() -> None:
    assert line({1: 1.0, 10: 2.0}).exponent is None
    assert line({1: 1.0, 10: 2.0}).bends() == []


def test_expected_exponents() -> None:
    repulsion = {"operator": "logit_weight_repulsion", "metric": "peak extra memory"}
    assert growth.expected(line({}, operator="logit_weight_repulsion")) == "2"
    assert growth.expected(line({}, **repulsion)) == "1"
    assert growth.expected(line({}, **repulsion, provider="eager")) == "2"
    assert growth.expected(line({}, **repulsion, provider="eager", axis="d")) == "0"
    assert growth.expected(line({}, metric="peak extra memory", axis="N")) == "1, past the budget 0"
    assert growth.expected(line({}, metric="peak extra memory", axis="N", provider="eager")) == "1"


def test_the_table_is_written_between_its_markers(tmp_path) -> None:
    rows = [row(f"along-C-{size}", f"N=64 C={size} d=128", size / 100) for size in (1_000, 4_000, 16_000)]
    rows += [row("along-C-1000", "N=64 C=1000 d=128", 0.5, metric="peak extra memory")]
    results.merge(tmp_path / "growth" / "cpu.csv", rows)
    new = kernels.rewritten(EMPTY, tmp_path, tmp_path)
    assert "old" not in new
    assert new.endswith("below\n")
    assert "Some CPU, 2 threads, torch 2.13.0, commit abc1234" in new
    cells = "| `linear_cross_entropy` | C | N=64 d=128 | ours | time | 1,000: 10 ms | 16,000: 160 ms | 1.00 | 1 |  |"
    assert cells in new
    assert "| memory |" not in new  # half of a MiB says nothing
    assert kernels.rewritten(new, tmp_path, tmp_path) == new
    assert kernels.rewritten(EMPTY, tmp_path / "none", tmp_path) == EMPTY


def test_kernels_tables_are_what_the_measured_files_say() -> None:
    text = (kernels.FOLDER / "growth.md").read_text(encoding="utf-8")
    assert text.count("<!-- table: growth -->") == text.count("<!-- end of table: growth -->") == 1
    for document in sorted(kernels.FOLDER.glob("*.md")):
        old = document.read_text(encoding="utf-8")
        assert kernels.rewritten(old, ROOT / "benchmarks" / "results") == old, "run make readme"
    assert f"repulsion up to {growth.REPULSION_POINTS[-1]:,}" in " ".join(text.split())


def test_growth_measures_time_and_memory_of_ours_and_eager(tmp_path) -> None:
    words = ["--growth", "--tiny", "--threads", "1", "--seconds", "0.001", "--operator", "lade_regularizer"]
    assert run.main([*words, "--case", "along-C-24", "--case", "along-N-6", "--out", str(tmp_path)]) == 0
    (path,) = (tmp_path / "growth").glob("*.csv")
    rows = results.read(path)
    assert {(row.case, row.sizes) for row in rows} == {("along-C-24", "N=8 C=24"), ("along-N-6", "N=6 C=24")}
    assert {row.provider for row in rows} == {"ours", "eager"}
    assert {row.provider for row in rows if row.metric == "peak extra memory"} == {"ours", "eager"}
    assert torch.tensor([row.p50 for row in rows if row.metric == "time"]).min() > 0
    assert list(tmp_path.glob("*.csv")) == []
