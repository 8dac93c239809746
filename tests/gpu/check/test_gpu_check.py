"""The GPU check itself: that it finds what is wrong, its arithmetic, its goals, its report, and a run without a GPU."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import check as judging
from benchmarks import measure, results
from benchmarks.cases import Case, cases
from benchmarks.gpu import bench, judge, laws, runner, variants
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu.pool import FULL, PARTS, TINY, Pool, Scene, Sizes
from benchmarks.gpu.report import Check
from benchmarks.gpu.roofline import BF16, GOALS
from benchmarks.gpu.scenes import free_threshold, scenes
from benchmarks.problems import problem
from benchmarks.tables import readme
from lt_kernels import functional
from lt_kernels.ops import budget

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AROUND = {"device": "NVIDIA X", "threads": 2, "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-01-01"}


def checking(tmp_path: Path, interpret: bool = False, minutes: float = 1.0) -> Check:
    return Check("cpu", True, 7, tmp_path, minutes, dict(AROUND), interpret)


# Less than the check itself takes: the interpreter is slow.
LEAST = Sizes(
    plain={"rows": ((3, 5),), "linear": ((3, 5, 7),), "cosine": (), "repulsion": ((5, 7),), "lade": ((3, 5),)},
    options={"rows": ((4, 9),), "linear": (), "cosine": ((4, 9, 8),), "repulsion": (), "lade": ()},
)


@pytest.mark.parametrize("section", [*gpu_check.PARTS, "determinism", "huge", "variants"])
def test_sections_run_without_a_gpu(section: str, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's kernels, in Triton's interpreter where there is no GPU."""
    for size in ("TINY", "FULL"):
        monkeypatch.setattr(judge, size, LEAST)
    monkeypatch.setattr(judge, "KINDS", judge.KINDS[:2])
    monkeypatch.setattr(judge, "NAMED", ("DBMLoss", "LADELoss", "EstimatedOffsetLoss"))
    monkeypatch.setattr(laws, "DTYPES", (torch.bfloat16,))
    monkeypatch.setattr(laws, "PARTS", ("cosine", "lade"))
    arguments = ["--inside", "--sections", section, "--seed", "11", "--out", str(tmp_path)]
    status = gpu_check.main(["--interpret" if DEVICE == "cpu" else "--device=cuda", *arguments])
    said = capsys.readouterr().out
    assert status == 0, said
    assert ("**winner**" if section == "variants" else "| ok |") in said


def test_a_whole_run_gathers_its_sections(tmp_path) -> None:
    """Through the command line, with a process for each section, on the reference kernels."""
    words = ["--device", "cpu", "--sections", "lade,roofline", "--seed", "3", "--out", str(tmp_path), "--commit", "abc"]
    command = [sys.executable, "-m", "benchmarks.gpu.check", *words]
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
    assert readme.bench_tables(tmp_path) == ""


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
    judge.correctness(check, "lade")
    assert check.failures
    said = capsys.readouterr().out
    assert "| FAIL |" in said
    assert spoil != "raises" or "RuntimeError: out of" in said
    assert spoil != "gradient" or "logits" in check.failures[0]


def test_the_rule_is_eager_plus_the_tolerance() -> None:
    kind = judge.KINDS[1]
    assert (kind.name, kind.tolerance) == ("float32", 2e-6)
    assert judge.wrong({"value": (1e-6, 0.0), "input": (5e-6, 4e-6)}, kind) == []
    assert len(judge.wrong({"value": (3e-6, 0.0), "input": (float("nan"), 1.0)}, kind)) == 2


def test_a_large_error_is_judged_by_the_mean_of_more_draws(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, drawn = judge.KINDS[0], iter([0.05, 0.001, 0.001, 0.001, 0.001, 0.9])
    monkeypatch.setattr(judge, "errors", lambda *_: {"value": (next(drawn), 0.01)})
    scene = next(scenes("lade", Pool("cpu", BF16, 7), TINY))
    found = judge.judged("lade", 0, scene, kind, checking(tmp_path))
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
    assert "run 2" in laws._differs(Scene("x", unsteady, unsteady, leaves), checking(tmp_path), 3)
    assert "NaN" in laws._differs(Scene("x", unwritten, unwritten, leaves), checking(tmp_path), 1)
    steady = Scene("x", torch.sum, torch.sum, {"input": torch.ones(3)})
    assert laws._differs(steady, checking(tmp_path), 3) == ""


def test_nan_has_the_same_bits_as_itself() -> None:
    first = {"value": torch.tensor(torch.nan), "logits": torch.tensor([[0.0, 1.0]])}
    assert laws.same_bits(first, {name: x.clone() for name, x in first.items()})
    assert not laws.same_bits(first, first | {"logits": torch.tensor([[-0.0, 1.0]])})


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


def test_cases_are_dropped_when_time_is_over(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(bench, "one", lambda case, check: ran.append(case))
    check = checking(tmp_path)
    monkeypatch.setattr(check, "left", lambda: 1.0 - len(ran))
    bench.bench(check)
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
    bench.one(case.tiny(), checking(tmp_path))
    said = capsys.readouterr().out
    assert "| ours |" in said
    assert "left out: eager: OutOfMemoryError: no room |" in said
    rows = results.read(tmp_path / "nvidia-x.csv")
    assert {one.provider for one in rows if one.metric == "time"} == {"ours", "clone"}


@pytest.mark.parametrize("case", cases("cuda"), ids=lambda case: f"{case.operator}-{case.name}-{case.dtype_name}")
def test_every_cuda_case_is_right_at_a_tiny_size(case: Case) -> None:
    found = judging.errors(problem(case.tiny(), "cpu"), bench.FEW)
    assert all(right for _, right in found.values()), found


def test_sections_are_expanded() -> None:
    assert gpu_check.expanded(["correctness", "bench", "lade"]) == [*gpu_check.PARTS, "bench"]
    split = gpu_check.expanded(["rows", "cosine", "huge"], split=True)
    assert split[:4] == ["rows-bfloat16", "rows-float32", "rows-float16", "rows-float64"]
    assert split[4:] == [*(f"cosine-{kind.name}" for kind in judge.KINDS), "huge"]
    assert gpu_check.arguments(["--device", "cuda"]).sections[-4:] == ["roofline", "profile", "epoch", "sanitizer"]
    assert gpu_check.arguments(["--interpret", "--inside", "--sections", "lade-float32"]).sections == ["lade-float32"]
    with pytest.raises(SystemExit, match="no section 'everything'"):
        gpu_check.expanded(["everything"])


def test_a_section_replaces_what_an_earlier_run_wrote(tmp_path) -> None:
    path = tmp_path / "x-check.md"
    first = runner.Report(path, "X", ["One", "Two"])
    first.put("Two", "old")
    first.put("One", "kept\n\n| a |")
    again = runner.Report(path, "X", ["One", "Two"])
    again.put("Two", "new")
    assert path.read_text(encoding="utf-8") == "# X\n\n## One\n\nkept\n\n| a |\n\n## Two\n\nnew\n"


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("print('**FAIL** this'); raise SystemExit(1)", "this"),
        ("import os; print('last words', flush=True); os.abort()", "ended with status -6: last words"),
        ("import time; print('begun', flush=True); time.sleep(60)", "ended after its 0.033 minutes: begun"),
        ("print('fine')", ""),
    ],
)
def test_no_section_takes_others_with_it(script: str, failure: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "command", lambda *_: [sys.executable, "-c", script])
    chosen = argparse.Namespace(limit=2 / 60, ends=time.monotonic() + 60, commit="abc", seed=1)
    report = runner.Report(tmp_path / "x.md", "X", [])
    found = runner.one("lade", "Lade", chosen, report, live=False)
    assert found == ([failure] if failure else [])


def test_choices_patch_what_is_there() -> None:
    for choice in variants.CHOICES:
        assert choice.case.operator == choice.operator
        first, *_ = choice.ways.values()
        assert first == {}
        for way in choice.ways.values():
            for target, value in way.items():
                module, _, name = target.rpartition(".")
                there = getattr(importlib.import_module(module), name)
                assert callable(there) == callable(value), target


def test_the_winner_is_clear_or_said_not_to_be() -> None:
    found = {"a": [2.0, 2.1, 1.9], "b": [1.0, 1.01, 0.99]}
    assert variants.winner(found) == "**winner** b, 100.0% before a"
    assert variants.winner({"a": [2.0, 1.0, 3.0], "b": [1.9, 1.0, 3.0]}).endswith("which is within the spread")
    assert variants.winner({"a": [2.0]}) == "**winner** a, the only one that runs"


def test_a_patched_choice_is_not_remembered() -> None:
    plan = budget.choose(torch.empty(512, 8, dtype=torch.bfloat16, device="meta"), 2**20, 2)
    with variants.patched({"lt_kernels.ops.budget.DEFAULT_BUDGET": 2**32}):
        larger = budget.choose(torch.empty(512, 8, dtype=torch.bfloat16, device="meta"), 2**20, 2)
    assert (plan.keep, larger.keep, budget.DEFAULT_BUDGET) == (False, True, 2**28)


@pytest.mark.parametrize("part", gpu_check.COMMANDS)
def test_each_command_fits_into_ten_minutes(part: str) -> None:
    chosen = gpu_check.arguments(["--part", part])
    assert chosen.all < 10
    assert chosen.minutes < chosen.all
    assert set(gpu_check.COMMANDS[part].sections) <= {*gpu_check.SECTIONS, "correctness"}


def test_what_does_not_fit_is_said(tmp_path) -> None:
    chosen = argparse.Namespace(limit=1.0, ends=time.monotonic() - 1, commit="abc", seed=1)
    assert runner.one("lade", "Lade", chosen, runner.Report(tmp_path / "x.md", "X", []), live=True) == [
        "did not run, because the time of this part was over"
    ]
