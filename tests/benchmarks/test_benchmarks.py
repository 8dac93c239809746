"""Every benchmark case at a tiny size, the judge that refuses wrong results, and the tables made of the results."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks import check, measure, memory, results, run
from benchmarks.cases import Case, cases
from benchmarks.problems import problem
from benchmarks.providers import NAMES, Provider, providers
from benchmarks.tables import readme

# torch.compile costs seconds a case; it is run for one.
FAST = [name for name in NAMES if name != "compile"]
QUICK = ["--threads", "1", "--seconds", "0.01"]
CASES = {(case.operator, case.name, case.dtype_name): case.tiny() for case in cases()}


@pytest.mark.parametrize("case", CASES.values(), ids=["-".join(key) for key in CASES])
def test_every_provider_of_every_case_is_right(case: Case) -> None:
    found = check.errors(problem(case, "cpu"), FAST)
    assert "ours" in found
    assert all(right for _, right in found.values()), found


def test_every_operator_and_named_loss_is_measured() -> None:
    from lt_kernels import functional, losses

    operators = {name for name in functional.__all__ if name.islower()}
    assert operators <= {case.operator for case in cases()}
    # One with a second part needs views, keys or experts; what it is made of is measured.
    named = {name for name in losses.__all__ if issubclass(getattr(losses, name), losses.Loss)} - {"Loss"}
    assert named == {case.loss for case in cases() if case.loss}


def test_compiled_eager_is_a_provider() -> None:
    tiny = CASES["offset_cross_entropy", "cifar", "float32"]
    assert check.errors(problem(tiny, "cpu"), ["compile"])["compile"][1]


@pytest.mark.parametrize("spoil", ["value", "gradient", "nan"])
def test_a_wrong_result_gets_no_time(spoil: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from benchmarks import providers as module

    def wrong(logits: torch.Tensor, target: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits + offset, target)
        if spoil == "value":
            return loss + 1e-3
        return loss + 1e-3 * (logits - logits.detach()).sum() if spoil == "gradient" else loss * torch.nan

    monkeypatch.setattr(module, "_ours", lambda problem: wrong)
    arguments = ["--tiny", *QUICK, "--operator", "offset_cross_entropy", "--case", "cifar", "--provider", "ours"]
    assert run.main([*arguments, "--provider", "eager", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*.csv")
    rows = results.read(path)
    assert {row.metric for row in rows if row.provider == "ours"} == {"wrong"}
    assert {row.metric for row in rows if row.provider == "eager"} == {"error", "time"}


def test_large_problems_are_checked_on_fewer_rows() -> None:
    posed = problem(Case("offset_cross_entropy", "x", 64, 10, 0), "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "WHOLE", 160 * check.OVERHEAD)
        small = check.reduced(posed)
        assert small.case.rows == 16
        assert torch.equal(small.leaves["logits"], posed.leaves["logits"][:16])
        weights = problem(Case("logit_weight_repulsion", "x", 0, 40, 8), "cpu")
        assert check.reduced(weights).leaves["linear_weight"].shape == (11, 8)


def test_repulsion_problem_has_similar_classes() -> None:
    weight = problem(Case("logit_weight_repulsion", "x", 0, 800, 256), "cpu").leaves["linear_weight"].detach()
    unit = torch.nn.functional.normalize(weight)
    share = ((unit @ unit.T) > 0.4).double().mean().item()
    assert 0.005 < share < 0.02


def test_samples_are_taken_in_turns(monkeypatch) -> None:
    monkeypatch.setattr(measure, "FEWEST", 40)
    order: list[str] = []
    serving = [Provider(name, lambda name=name: order.append(name), lambda _: []) for name in "abc"]
    samples = measure.interleaved(serving, "cpu", seconds=0.0)  # as few turns as there may be, however busy the machine
    turns = [order[start : start + 3] for start in range(3, len(order), 3)]
    assert order[:3] == ["a", "b", "c"]  # the warm-up
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert {len(taken.both) for taken in samples.values()} == {len(turns)}
    assert len(turns) == measure.FEWEST
    after = Counter((turn[0], turn[1]) for turn in turns)
    assert len(after) == 6  # everybody comes after everybody


def test_memory_is_the_peak_of_a_fresh_process() -> None:
    case = Case("offset_cross_entropy", "x", 2_048, 4_096, 0)
    (limit,) = [p for p in providers(problem(case, "cpu"), ["clone"]) if p.is_limit]
    peak = memory.cpu_peak(limit)
    assert peak is None or 30 * 2**20 < peak < 40 * 2**20  # the clone has 32 MiB


def test_run_writes_rows_and_replaces_them(tmp_path) -> None:
    arguments = ["--tiny", *QUICK, "--operator", "linear_cross_entropy", "--case", "faces"]
    for provider in ("ours", "eager", "torch-chunked", "products"):
        arguments += ["--provider", provider]
    assert run.main([*arguments, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.csv")
    rows = results.read(path)
    assert {row.mode for row in rows if row.metric == "time"} == {"forward", "backward", "both"}
    assert {row.provider for row in rows if row.metric == "time"} >= {"ours", "eager", "products"}
    assert {row.provider for row in rows if row.metric == "peak extra memory"} >= {"ours", "eager"}
    results.merge(path, [replace(rows[0], p50=7.0)])
    again = results.read(path)
    assert [row.p50 for row in again if row.place == rows[0].place] == [7.0]
    assert len(again) < len(rows)


def test_no_such_case_is_an_error_that_names_those_there_are(tmp_path) -> None:
    with pytest.raises(SystemExit, match="offset_cross_entropy"):
        run.main(["--case", "nothing", "--out", str(tmp_path)])


def row(provider: str, p50: float, metric: str = "time", operator: str = "offset_cross_entropy") -> results.Row:
    figures = ("ms", p50, p50, p50, 9, 2, "2.13.0", "3.7.1", "abc1234", "2026-01-01")
    return results.Row(operator, "inat", provider, "both", "Some CPU", "float32", "N=1 C=2", metric, *figures)


# What `compare`, `shift` and `analyze` leave in the folder of a comparison.
WRITTEN = {
    "table.csv": "method,all,s/epoch\nce,70.1 ± 0.5,0.2\nbs,74.0 ± 0.3,0.1",
    "table.json": json.dumps({"data": "digits-lt", "commit": "abc1234"}),
    "pairs.csv": "method,beside,difference of all,seeds above\nbs,ce,+3.9 ± 0.2,3 of 3",
    "shift/shift.csv": "method,prior,forward 2\nce,as trained,61.5 ± 0.5",
    "shift/shift.json": json.dumps({"data": "digits-lt"}),
    "analysis/summary.csv": "run,calibration_error,angle_weight_few,angle_weight_many,accuracy_all\n"
    "ce,0.0688,,59.479,80.1\nbs,,,63.89,86.0",
    "analysis/false_positives.csv": "run,class,false_positives\nce,0,3315.0\nce,1,9.0\nce,2,1.0\nbs,0,28.0\nbs,2,4.0",
}


def test_tables_are_written_between_their_markers(tmp_path) -> None:
    results.merge(tmp_path / "cpu.csv", [row("ours", 2.0), row("eager", 6.0), row("ours", 12.0, "peak extra memory")])
    for name, text in WRITTEN.items():
        (tmp_path / "runs" / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "demo" / name).write_text(text, encoding="utf-8")
    readme.collect(tmp_path / "runs", tmp_path)
    text = "above\n"
    for name in ("bench", "compare-demo", "shift-demo", "pairs-demo", "analysis-demo"):
        text += f"<!-- table: {name} -->\nold\n<!-- end of table: {name} -->\nbelow\n"
    new = readme.rewritten(text, tmp_path)
    assert "old" not in new
    assert new.startswith("above\n")
    assert new.count("below") == 5
    heads = (
        "false positives of the most frequent class | of the rarest | calibration error | angle to the weight, many [°]"
    )
    assert f"| run | {heads} |" in new
    assert "| ce | 3,315 | 1 | 0.0688 | 59.5 |" in new
    assert "| bs | 28 | 4 |  | 63.9 |" in new
    assert "| bs | ce | +3.9 ± 0.2 | 3 of 3 |" in new
    assert "| ce | as trained | **61.5 ± 0.5** |" in new
    assert "| 2 | 3.00x |" in new
    assert "Some CPU, 2 threads, torch 2.13.0, commit abc1234" in new
    assert "| ce | 70.1 ± 0.5 | 0.2 |" in new
    assert "| bs | **74.0 ± 0.3** | 0.1 |" in new
    assert "data digits-lt, commit abc1234" in new
    assert readme.rewritten(new, tmp_path) == new


def test_a_section_without_results_stays(tmp_path) -> None:
    text = "<!-- table: bench -->\nold\n<!-- end of table: bench -->"
    assert readme.rewritten(text, tmp_path) == text
