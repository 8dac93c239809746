"""Ctrl-C, SIGTERM and kill -9 at moments over the whole of a run and of a comparison: statuses, processes and bits.

Two moments of each in the suite, ten with `make inject`; test_inject_kills.py has thirty kills of a run.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.injection.processes import group
from tests.injection.runs import bits, left_over, same
from tests.injection.test_inject_kills import chosen
from tests.nursery import Nursery
from tests.pages import Page

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
# mixup draws at every step; LDAM's weights come within the run; what the process itself does is counted, so --jobs 1
CHANGES = ["warmup_epochs=1", "checkpoint_steps=4", "checkpoint_epochs=1", "mixup_alpha=0.5", "threads=1"]
COMPARE = ["compare", "--data", "digits-lt", "--methods", "ce,ldam-drw", "--seeds", "1", "--epochs", "2", "--jobs", "1"]
COMPARE += ["--quiet", *(word for change in CHANGES for word in ("--set", change))]
SAME = ("classes.csv", "pairs.csv", "comparison.yaml")  # the other files have times


def stopped(nursery: Nursery, words: list[str | Path], moment: int, number: signal.Signals) -> str:
    """What a command said that was sent a signal at a moment; its status is right, and no process of it is left."""
    child = nursery.start(*words, before=f"moments.do_at({moment}, lambda: os.kill(os.getpid(), {number.value}))")
    assert child.wait() == STATUS[number], child.text()
    assert group(child.pid) == []
    assert number == signal.SIGKILL or f"interrupted by {number.name}" in child.text()
    assert child.text().count("\n") == (number != signal.SIGKILL), child.text()
    return child.text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_interrupted_at_any_moment_goes_on(
    nursery: Nursery, whole: Path, tmp_path: Path, number: signal.Signals, number_of_moments: int
) -> None:
    names = json.loads((whole.parent / "moments.json").read_text())
    for moment in chosen(number_of_moments + 1, len(names))[:-1]:  # after the last one nothing is left to do
        out = tmp_path / str(moment)
        words = ["train", "--config", whole.parent / "recipe.yaml", "--out", out, "--quiet"]
        text = stopped(nursery, words, moment, number)
        kept = (out / "last.ckpt").exists()
        anew = "there was no checkpoint yet: the same command starts anew"
        assert text.endswith(f"go on with: lt-kernels train --resume --out {out}\n" if kept else f"{anew}\n")
        status, text = nursery.run(*words, "--resume")
        assert status == 0, text
        assert same(bits(out), bits(whole)), f"{moment}: {names[moment]}"
        assert left_over(out) == []


@pytest.fixture(scope="module")
def compared(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison left alone; in moments.json beside it, what happened in it."""
    root = tmp_path_factory.mktemp("compared")
    before = f"moments.record({str(root / 'moments.json')!r})"
    status, text = nursery.run(*COMPARE, "--out", root / "whole", before=before)
    assert status == 0, text
    return root / "whole"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find processes in")
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_comparison_stopped_at_any_moment_goes_on(
    nursery: Nursery, compared: Path, tmp_path: Path, number: signal.Signals, number_of_moments: int
) -> None:
    """From the first file to the report's."""
    names = json.loads((compared.parent / "moments.json").read_text())
    for moment in chosen(number_of_moments + 1, len(names))[1:]:
        out = tmp_path / str(moment)
        words = [*COMPARE, "--out", out]
        stopped(nursery, words, moment - 1, number)
        status, text = nursery.run(*words, "--resume", before="torch.manual_seed(1)")
        assert status == 0, text
        for method in ("ce", "ldam-drw"):
            assert same(bits(out / method / "seed-0"), bits(compared / method / "seed-0")), f"{moment}: {names[moment]}"
        assert all((out / name).read_bytes() == (compared / name).read_bytes() for name in SAME)
        assert Page((out / "report.html").read_text()).outside() == []
        assert not list(out.rglob("*.tmp"))
