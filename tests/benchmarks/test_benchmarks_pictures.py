"""What the pictures of the benchmarks show, and that `lt-kernels bench --plot` writes them."""

from __future__ import annotations

import pytest

from benchmarks import growth, results, run
from benchmarks.tables import kernels

pictures = pytest.importorskip("benchmarks.tables.pictures", reason="matplotlib is not installed", exc_type=ImportError)


def row(operator: str, case: str, sizes: str, provider: str, p50: float, metric: str = "time") -> results.Row:
    figures = ("ms" if metric == "time" else "MiB", p50, p50, p50, 9, 2, "2.13.0", "3.7.1", "abc1234", "2026-01-01")
    return results.Row(operator, case, provider, "both", "Some CPU", "float32", sizes, metric, *figures)


def sweep(operator: str, power: int = 1) -> list[results.Row]:
    """Ours and eager along C, time and memory."""
    return [
        row(operator, f"along-C-{size}", f"N=64 C={size}", who, factor * (size / 1_000) ** power, metric)
        for size in (1_000, 10_000, 100_000, 1_000_000)
        for who, factor in (("ours", 1.0), ("eager", 3.0))
        for metric in ("time", "peak extra memory")
    ]


def test_shares_are_of_the_limit_in_percent() -> None:
    rows = [row("offset_cross_entropy", "inat", "N=1 C=2", who, p50) for who, p50 in (("ours", 2.0), ("clone", 0.5))]
    rows += [row("linear_cross_entropy", "inat", "N=1 C=2 d=3", who, 4.0) for who in ("ours", "products", "eager")]
    rows += [row("logit_weight_repulsion", "lwr", "C=2 d=3", who, 4.0) for who in ("ours", "products")]
    assert pictures.limit_shares(rows) == [
        ("offset_cross_entropy  N=1 C=2", "clone", 25.0),
        ("linear_cross_entropy  N=1 C=2 d=3", "products", 100.0),
    ]


def test_curves_have_units_a_line_a_provider_and_guides_of_the_expected_slope() -> None:
    rows = sweep("linear_cross_entropy") + sweep("logit_weight_repulsion", power=2)
    lines = [line for line in growth.lines(rows) if line.metric == "time"]
    figure = pictures.curves(lines, "time", "Some CPU")
    linear, repulsion, legend = figure.axes[:3]
    for axis, power in ((linear, 1), (repulsion, 2)):
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        assert axis.get_ylabel().endswith("[ms]")
        assert axis.get_xlabel() == "classes C"
        ours, guide, eager = (list(axis.lines[index].get_ydata()) for index in (0, 2, 1))
        assert ours == pytest.approx([10.0 ** (power * step) for step in range(4)])
        assert eager == pytest.approx([3 * figure for figure in ours])
        assert guide == pytest.approx([ours[0], ours[-1]])
    words = [text.get_text() for text in legend.get_legend().get_texts()]
    assert words == ["lt_kernels", "eager torch", "proportional to C", "proportional to C²"]
    assert linear.get_legend() is None


def test_plot_writes_pictures_that_the_document_shows(tmp_path, capsys) -> None:
    results.merge(tmp_path / "growth" / "some-cpu.csv", sweep("linear_cross_entropy"))
    cases = [row("offset_cross_entropy", "inat", "N=1 C=2", who, 2.0) for who in ("ours", "clone")]
    results.merge(tmp_path / "some-cpu.csv", cases)
    (tmp_path / "compare-demo.csv").write_text("method,all\n", encoding="utf-8")
    assert run.main(["--plot", "--out", str(tmp_path), "--pictures", str(tmp_path / "pictures")]) == 0
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["some-cpu-limits.png", "some-cpu-memory.png", "some-cpu-time.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "pictures").iterdir())
    text = "<!-- table: pictures -->\nold\n<!-- end of table: pictures -->\n"
    new = kernels.rewritten(text, tmp_path, tmp_path / "pictures")
    assert "![some cpu limits](../pictures/some-cpu-limits.png)" in new
    assert capsys.readouterr().out.count("wrote ") == 3


def test_nothing_to_draw_is_said(tmp_path, capsys) -> None:
    assert run.main(["--plot", "--out", str(tmp_path), "--pictures", str(tmp_path / "pictures")]) == 1
    assert "nothing is measured in" in capsys.readouterr().out
