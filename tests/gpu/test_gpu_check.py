"""The GPU check itself: that it finds what is wrong, its arithmetic, its goals, its report, and a run without a GPU."""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import check as judging
from benchmarks import gpu_bench, gpu_check, gpu_judge, gpu_laws, gpu_runner, measure, peers, results, table
from benchmarks import gpu_roofline as roof
from benchmarks.cases import Case, cases
from benchmarks.gpu_pool import FULL, PARTS, TINY, Pool, Scene, Sizes
from benchmarks.gpu_report import Check
from benchmarks.gpu_roofline import BF16, COSINE, FP32, GOALS, LINEAR, Figures, Rates
from benchmarks.gpu_scenes import free_threshold, scenes
from benchmarks.problems import problem
from lt_kernels import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AROUND = {"device": "NVIDIA X", "threads": 2, "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-01-01"}


def checking(tmp_path: Path, interpret: bool = False, minutes: float = 1.0) -> Check:
    return Check("cpu", True, 7, tmp_path, minutes, dict(AROUND), interpret)


# Less than the check itself takes: the interpreter is slow.
LEAST = Sizes(
    plain={"rows": ((3, 5),), "linear": ((3, 5, 7),), "cosine": (), "repulsion": ((5, 7),), "lade": ((3, 5),)},
    options={"rows": ((4, 9),), "linear": (), "cosine": ((4, 9, 8),), "repulsion": (), "lade": ()},
)


@pytest.mark.parametrize("section", [*gpu_check.PARTS, "determinism", "huge"])
def test_sections_run_without_a_gpu(section: str, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's kernels, in Triton's interpreter where there is no GPU."""
    for size in ("TINY", "FULL"):
        monkeypatch.setattr(gpu_judge, size, LEAST)
    monkeypatch.setattr(gpu_judge, "KINDS", gpu_judge.KINDS[:2])
    monkeypatch.setattr(gpu_judge, "NAMED_LOSSES", ("DBMLoss", "LADELoss", "EstimatedOffsetLoss"))
    monkeypatch.setattr(gpu_laws, "DTYPES", (torch.bfloat16,))
    arguments = ["--inside", "--sections", section, "--seed", "11", "--out", str(tmp_path)]
    status = gpu_check.main(["--interpret" if DEVICE == "cpu" else "--device=cuda", *arguments])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "| ok |" in said


def test_a_whole_run_gathers_its_sections(tmp_path) -> None:
    """Through the command line, with a process for each section, on the reference kernels."""
    words = ["--device", "cpu", "--sections", "lade,roofline", "--seed", "3", "--out", str(tmp_path), "--commit", "abc"]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *words]
    done = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.glob("*-check.md")
    text = report.read_text(encoding="utf-8")
    assert "None in lade, roofline." in text
    assert "commit abc, seed 3" in text
    assert text.index("## Failures") < text.index("## Correctness: lade") < text.index("## Roofline and goals")
    assert "| goal | case | met | measured |" in text
    (path,) = tmp_path.glob("*.csv")
    assert {row.case for row in results.read(path)} == {"copy", "product"}
    assert table.bench_tables(tmp_path) == ""


def test_without_a_gpu_it_says_so(capsys) -> None:
    if DEVICE == "cuda":
        pytest.skip("there is a GPU here")
    assert gpu_check.main([]) == 2
    assert "--interpret" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["value", "gradient", "nan", "raises"])
def test_a_wrong_kernel_is_found(spoil: str, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.lade_regularizer

    def wrong(logits: torch.Tensor, *rest, **options) -> torch.Tensor:
        value = right(logits, *rest, **options)
        if spoil == "raises":
            raise RuntimeError("out of\nluck")
        if spoil == "value":
            return value * 1.05
        return value * torch.nan if spoil == "nan" else value + 0.1 * (logits - logits.detach()).sum()

    monkeypatch.setattr(functional, "lade_regularizer", wrong)
    check = checking(tmp_path)
    gpu_judge.correctness(check, "lade")
    assert check.failures
    said = capsys.readouterr().out
    assert "| FAIL |" in said
    assert spoil != "raises" or "RuntimeError: out of" in said
    assert spoil != "gradient" or "logits" in check.failures[0]


def test_the_rule_is_eager_plus_the_tolerance() -> None:
    kind = gpu_judge.KINDS[1]
    assert (kind.name, kind.tolerance) == ("float32", 2e-6)
    assert gpu_judge.wrong({"value": (1e-6, 0.0), "input": (5e-6, 4e-6)}, kind) == []
    assert len(gpu_judge.wrong({"value": (3e-6, 0.0), "input": (float("nan"), 1.0)}, kind)) == 2


def test_a_large_error_is_judged_by_the_mean_of_more_draws(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, drawn = gpu_judge.KINDS[0], iter([0.05, 0.001, 0.001, 0.001, 0.001, 0.9])
    monkeypatch.setattr(gpu_judge, "errors", lambda *_: {"value": (next(drawn), 0.01)})
    scene = next(scenes("lade", Pool("cpu", BF16, 7), TINY))
    found = gpu_judge.judged("lade", 0, scene, kind, checking(tmp_path))
    assert found["value"][0] == pytest.approx(0.0108)
    assert next(drawn) == 0.9  # five draws, no more


def test_other_bits_are_found(tmp_path) -> None:
    turns = iter(range(9))

    def unsteady(logits: torch.Tensor) -> torch.Tensor:
        return logits.sum() + (2**-20 if next(turns) == 1 else 0.0)

    def unwritten(logits: torch.Tensor) -> torch.Tensor:
        return logits.sum() + torch.empty(1)[0].isnan()

    leaves = {"logits": torch.ones(3)}
    torch.use_deterministic_algorithms(False)  # the fixture has new memory hold NaN
    assert "run 2" in gpu_laws._differs(Scene("x", unsteady, unsteady, leaves), checking(tmp_path), 3)
    assert "NaN" in gpu_laws._differs(Scene("x", unwritten, unwritten, leaves), checking(tmp_path), 1)
    steady = Scene("x", torch.sum, torch.sum, {"input": torch.ones(3)})
    assert gpu_laws._differs(steady, checking(tmp_path), 3) == ""


def test_nan_has_the_same_bits_as_itself() -> None:
    first = {"value": torch.tensor(torch.nan), "logits": torch.tensor([[0.0, 1.0]])}
    assert gpu_laws.same_bits(first, {name: x.clone() for name, x in first.items()})
    assert not gpu_laws.same_bits(first, first | {"logits": torch.tensor([[-0.0, 1.0]])})


@pytest.mark.parametrize("part", PARTS)
def test_scenes_are_the_same_in_every_dtype(part: str) -> None:
    wide, narrow = (list(scenes(part, Pool("cpu", dtype, 5), TINY)) for dtype in (torch.float64, BF16))
    assert [scene.title for scene in wide] == [scene.title for scene in narrow]
    for first, second in zip(wide, narrow, strict=True):
        for name, leaf in first.leaves.items():
            assert torch.equal(leaf.to(BF16), second.leaves[name])


def test_scenes_reach_sizes_that_need_slabs_and_odd_strides() -> None:
    assert any(rows % 2 and classes % 2 for rows, classes in FULL.plain["rows"])
    for part in ("linear", "cosine"):
        assert any(classes > 100 * rows for rows, classes, _ in FULL.plain[part])
        shapes = FULL.options[part]
        assert any(rows > classes for rows, classes, _ in shapes)
        assert any(classes > rows for rows, classes, _ in shapes)


def test_threshold_lies_between_the_cosines() -> None:
    weight = torch.nn.functional.normalize(torch.randn(200, 5, dtype=torch.float64))
    threshold = free_threshold(weight, 0.4)
    cosine = weight @ weight.T
    assert abs(threshold - 0.4) < 0.02
    assert (cosine - threshold).abs().min() > 1e-7


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
    ranked = gpu_bench.ranked(cases("cuda"))
    assert [(c.operator, c.name, c.dtype) for c in ranked[: len(GOALS)]] == [
        (goal.operator, goal.name, goal.dtype) for goal in GOALS
    ]
    assert sorted(map(str, ranked)) == sorted(map(str, cases("cuda")))
    assert ranked[-1].operator == "losses"


def test_goals_are_judged_by_the_figures() -> None:
    case = Figures(H200, []).case
    offset, faces = case("offset_cross_entropy", "vocab-4096", BF16), case(COSINE, "faces", BF16)
    inat, small = case(LINEAR, "inat", BF16), case("logit_weight_repulsion", "lwr-inat", FP32)
    times = {offset: 0.53, faces: 30.5, inat: 0.4, small: 0.5}
    found = verdicts(*(row(case, "ours", time) for case, time in times.items()))
    assert found["offset_cross_entropy", "vocab-4096"] == (True, "92%")
    assert found[COSINE, "faces"] == (False, "30.5 ms, 1.91x the floor")
    assert found[LINEAR, "inat"][0] is False
    assert found["logit_weight_repulsion", "lwr-inat"][0] is True
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
    rates = roof.measured_rates(checking(tmp_path))
    assert rates.copy > 1e6
    assert set(rates.products) == {"bfloat16", "float32"}
    kept = roof.rows_of(rates, AROUND)
    assert [(one.case, one.unit) for one in kept] == [("copy", "GB/s"), *[("product", "TFLOP/s")] * 2]


def test_cases_are_dropped_when_time_is_over(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(gpu_bench, "one", lambda case, check: ran.append(case))
    check = checking(tmp_path)
    monkeypatch.setattr(check, "left", lambda: 1.0 - len(ran))
    gpu_bench.bench(check)
    said = capsys.readouterr().out
    assert [case.name for case in ran] == [GOALS[0].name]
    assert "Dropped when 1 minutes were over: cosine_margin_cross_entropy faces" in said
    assert "LabelAwareSmoothingLoss" in said


def test_a_benchmark_line_for_each_provider(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (c for c in cases("cuda") if (c.operator, c.name) == ("cross_entropy", "inat"))
    right = measure.once

    def once(provider: measure.Provider, *rest) -> float:
        if provider.name == "eager":
            raise torch.OutOfMemoryError("no room\nat all")
        return right(provider, *rest)

    monkeypatch.setattr(measure, "once", once)
    gpu_bench.one(case.tiny(), checking(tmp_path))
    said = capsys.readouterr().out
    assert "| ours |" in said
    assert "left out: eager: OutOfMemoryError: no room |" in said
    rows = results.read(tmp_path / "nvidia-x.csv")
    assert {one.provider for one in rows if one.metric == "time"} == {"ours", "clone"}


@pytest.mark.parametrize("case", cases("cuda"), ids=lambda case: f"{case.operator}-{case.name}-{case.dtype_name}")
def test_every_cuda_case_is_right_at_a_tiny_size(case: Case) -> None:
    found = judging.errors(problem(case.tiny(), "cpu"), gpu_bench.FEW)
    assert all(right for _, right in found.values()), found


def test_sections_are_expanded() -> None:
    assert gpu_check.expanded(["correctness", "bench", "lade"]) == [*gpu_check.PARTS, "bench"]
    with pytest.raises(SystemExit, match="no section 'everything'"):
        gpu_check.expanded(["everything"])


def test_a_section_replaces_what_an_earlier_run_wrote(tmp_path) -> None:
    path = tmp_path / "x-check.md"
    first = gpu_runner.Report(path, "X", ["One", "Two"])
    first.put("Two", "old")
    first.put("One", "kept\n\n| a |")
    again = gpu_runner.Report(path, "X", ["One", "Two"])
    again.put("Two", "new")
    assert path.read_text(encoding="utf-8") == "# X\n\n## One\n\nkept\n\n| a |\n\n## Two\n\nnew\n"


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("print('**FAIL** this'); raise SystemExit(1)", "this"),
        ("import os; print('last words', flush=True); os.abort()", "ended with status -6: last words"),
        ("import time; print('begun', flush=True); time.sleep(60)", "ended with status -9: begun"),
        ("print('fine')", ""),
    ],
)
def test_no_section_takes_others_with_it(script: str, failure: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_runner, "command", lambda *_: [sys.executable, "-c", script])
    chosen = argparse.Namespace(limit=2 / 60, commit="abc", seed=1)
    report = gpu_runner.Report(tmp_path / "x.md", "X", [])
    found = gpu_runner.one("lade", "Lade", chosen, report, live=False)
    assert found == ([failure] if failure else [])


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
    assert peers.function(name, operator, "cpu") is None


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
    text = table.bench_tables(tmp_path)
    assert "| operator | case | ours, ms | as a graph, ms | CCE | memory: ours | memory: eager |" in text
    assert "| 0.2 | 0.1 | 1.50x |  |  |" in text
    assert replace(rows[0], p50=1.0).place == rows[0].place
