"""The GPU check's figures: least work, goals, the tables made of them, and the peers that ours is measured against."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace

import pytest

from benchmarks import peers, results
from benchmarks.cases import Case, cases
from benchmarks.gpu import bench
from benchmarks.gpu import roofline as roof
from benchmarks.gpu.report import Check
from benchmarks.gpu.roofline import BF16, COSINE, FP32, GOALS, LINEAR, Figures, Rates
from benchmarks.problems import problem
from benchmarks.tables import readme

AROUND = {"device": "NVIDIA X", "threads": 2, "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-01-01"}


def test_least_work_of_each_operator() -> None:
    offset = Case("offset_cross_entropy", "vocab-4096", 4_096, 128_256, 2_048, BF16)
    assert roof.work(offset) == (2 * 4_096 * 128_256 * 2, 0)
    faces = Case(COSINE, "faces", 4_096, 1_000_000, 512, BF16)
    assert roof.work(faces) == (2 * (4_096 + 1_000_000) * 512 * 2, 6 * 4_096 * 1_000_000 * 512)
    repulsion = Case("logit_weight_repulsion", "lwr-inat", 0, 8_142, 2_048)
    assert roof.work(repulsion) == (2 * 8_142 * 2_048 * 4, 8_142**2 * 2_048)
    assert roof.work(Case("losses", "DBMLoss", 128, 100, 64, loss="DBMLoss")) == (2 * 128 * 100 * 4, 0)


H200 = Rates(4.3e12, {"bfloat16": 790e12, "float32": 50e12})


def test_floor_is_the_larger_of_copy_and_products() -> None:
    assert H200.floor(Case(COSINE, "faces", 4_096, 1_000_000, 512, BF16)) == pytest.approx(15.93e-3, rel=1e-3)
    assert H200.floor(Case(LINEAR, "inat", 256, 8_142, 2_048, BF16)) == pytest.approx(32.4e-6, rel=1e-2)
    assert H200.floor(Case("cross_entropy", "x", 4_096, 128_256, 2_048, BF16)) == pytest.approx(488.7e-6, rel=1e-3)


def row(case: Case, provider: str, milliseconds: float, mode: str = "both", metric: str = "time") -> results.Row:
    figures = ("ms", milliseconds, milliseconds, milliseconds, 9)
    place = (case.operator, case.name, provider, mode, AROUND["device"], case.dtype_name, case.sizes, metric)
    return results.Row(*place, *figures, *list(AROUND.values())[1:])


def verdicts(*rows: results.Row) -> dict[tuple[str, str], tuple[bool | None, str]]:
    figures = Figures(H200, rows)
    return {(goal.operator, goal.name): goal.verdict(figures) for goal in GOALS}


def test_goals_name_cases_that_are_measured_first() -> None:
    ranked = bench.ranked(cases("cuda"))
    assert [(c.operator, c.name, c.dtype) for c in ranked[: len(GOALS)]] == [
        (goal.operator, goal.name, goal.dtype) for goal in GOALS
    ]
    assert sorted(map(str, ranked)) == sorted(map(str, cases("cuda")))
    assert ranked[-1].operator == "losses"


def test_goals_are_judged_by_the_figures() -> None:
    case = Figures(H200, []).case
    offset, faces = case("offset_cross_entropy", "vocab-4096", BF16), case(COSINE, "faces", BF16)
    inat, small = case(LINEAR, "inat", BF16), case("logit_weight_repulsion", "lwr-inat-sparse", FP32)
    times = {offset: 0.53, faces: 30.5, inat: 0.4, small: 0.5}
    found = verdicts(*(row(case, "ours", time) for case, time in times.items()))
    assert found["offset_cross_entropy", "vocab-4096"] == (True, "92%")
    assert found[COSINE, "faces"] == (False, "30.5 ms, 1.91x the floor")
    assert found[LINEAR, "inat"][0] is False
    assert found["logit_weight_repulsion", "lwr-inat-sparse"][0] is True
    assert found["logit_weight_repulsion", "lwr-100k"] == (None, "")
    graphed = verdicts(row(inat, "ours", 0.4), row(inat, "ours", 0.1, mode="graph"))
    assert graphed[LINEAR, "inat"] == (True, "0.1 ms, 3.08x the floor")
    assert verdicts(row(offset, "ours", 0.55))["offset_cross_entropy", "vocab-4096"] == (False, "89%")


def test_peers_have_to_be_beaten_all() -> None:
    case = Figures(H200, []).case
    linear, cosine = case(LINEAR, "vocab", BF16), case(COSINE, "vocab", BF16)
    memory = row(linear, "ours", 700.0, metric="peak extra memory")
    ours = (row(linear, "ours", 20.0), row(cosine, "ours", 26.0), memory)
    assert verdicts(*ours)[LINEAR, "vocab"] == (None, "20 ms, no peer measured")
    found = verdicts(*ours, row(linear, "cce", 25.0), row(linear, "liger", 40.0))
    assert found[LINEAR, "vocab"] == (True, "20 ms; cce 25, liger 40; memory, MiB: ours 700")
    assert found[COSINE, "vocab"][0] is False


def test_the_table_has_a_line_for_each_measured_case() -> None:
    case = Figures(H200, []).case(COSINE, "faces", BF16)
    (line,) = roof.table(Figures(H200, [row(case, "ours", 20.0)]), cases("cuda"))
    assert line[2:] == ["20", "", "2,056.4", "12,582.9", "15.93", "2%", "80%"]


def test_device_rates_are_measured(tmp_path) -> None:
    rates = roof.measured_rates(Check("cpu", True, 7, tmp_path, 1.0, dict(AROUND)))
    assert rates.copy > 1e6
    assert set(rates.products) == {"bfloat16", "float32"}
    kept = roof.rows_of(rates, AROUND)
    assert [(one.case, one.unit) for one in kept] == [("copy", "GB/s"), *[("product", "TFLOP/s")] * 2]


LIGER = "liger_kernel.transformers"
SIGNATURES = [
    ("liger", f"{LIGER}.cross_entropy", "LigerCrossEntropyLoss.forward", ["_input", "target"]),
    (
        "liger",
        f"{LIGER}.fused_linear_cross_entropy",
        "LigerFusedLinearCrossEntropyLoss.forward",
        ["lin_weight", "_input", "target"],
    ),
    ("cce", "cut_cross_entropy", "linear_cross_entropy", ["e", "c", "targets", "filter_eps", "reduction"]),
    ("quack", "quack", "cross_entropy", ["x", "target", "reduction"]),
    ("quack", "quack.linear_cross_entropy", "chunked_linear_cross_entropy", ["x", "weight", "target", "reduction"]),
]


@pytest.mark.parametrize(("name", "module", "path", "words"), SIGNATURES, ids=[case[2] for case in SIGNATURES])
def test_peers_take_what_they_are_given(name: str, module: str, path: str, words: list[str]) -> None:
    if peers.absent(name):
        pytest.skip(f"{name} does not import here: {peers.absent(name)}")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    taken = [word for word in inspect.signature(found).parameters if word != "self"]
    places = min(3, len(words))
    if name != "quack":
        assert taken[:places] == words[:places]
    assert set(words) <= set(taken)


@pytest.mark.parametrize(("name", "operator"), peers.BUILDERS, ids="-".join)
def test_peers_are_called_with_the_tensors_of_the_problem(name: str, operator: str) -> None:
    if peers.absent(name):
        pytest.skip(f"{name} does not import here: {peers.absent(name)}")
    posed = problem(Case(operator, "x", 4, 10, 8), "cpu")
    taken = set(inspect.signature(peers.BUILDERS[name, operator]()).parameters)
    assert taken <= set(posed.leaves) | set(posed.constants)
    assert set(posed.leaves) <= taken
    assert (peers.function(name, operator, "cpu") is None) == (name not in peers.ANYWHERE)


def test_who_writes_into_the_logits_gets_its_own() -> None:
    posed = problem(Case("cross_entropy", "x", 4, 10, 8), "cpu")
    own = posed.copy()
    own.leaves["logits"].detach().zero_()
    assert posed.leaves["logits"].detach().abs().min() > 0
    assert peers.spoils("liger", "cross_entropy")
    assert not peers.spoils("liger", "offset_cross_entropy")


def test_gpu_table_has_columns_for_what_was_measured(tmp_path) -> None:
    (case,) = (c for c in cases("cuda") if (c.operator, c.name, c.dtype) == (LINEAR, "inat", BF16))
    rows = [row(case, "ours", 0.2), row(case, "ours", 0.1, mode="graph"), row(case, "cce", 0.3)]
    results.merge(tmp_path / "nvidia-x.csv", [*rows, *roof.rows_of(H200, AROUND)])
    text = readme.bench_tables(tmp_path)
    assert "| operator | case | ours, ms | as a graph, ms | CCE | memory: ours | memory: eager |" in text
    assert "| 0.2 | 0.1 | 1.50x |  |  |" in text
    assert replace(rows[0], p50=1.0).place == rows[0].place
