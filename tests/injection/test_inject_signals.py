"""Ctrl-C, SIGTERM, a closed terminal and processes that die: what is done is kept, nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.injection.processes import group
from tests.injection.runs import bits, left_over, recipe, same
from tests.nursery import FORKS, Child, Nursery, until

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_signal_ends_train_with_a_word_and_resume_goes_on(
    nursery: Nursery, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """It comes within the second epoch, at step 15 of 20."""
    out = tmp_path / "run"
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", out, "--quiet"]
    at_step_15 = f"moments.at_step(15, lambda: os.kill(os.getpid(), {number.value}))"
    status, text = nursery.run(*words, before=at_step_15)
    assert status == STATUS[number]
    assert text == (
        f"lt-kernels train: interrupted by {number.name}; '{out}/last.ckpt' is kept; "
        f"go on with: lt-kernels train --resume --out {out}\n"
    )
    assert left_over(out) == []
    assert not (out / "result.json").exists()
    assert nursery.run("train", "--resume", "--out", out, "--quiet")[0] == 0
    assert same(bits(out), bits(whole))


def test_a_signal_before_the_first_checkpoint(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", tmp_path / "run", "--quiet"]
    status, text = nursery.run(*words, before="moments.at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))")
    assert status == 143
    assert "there was no checkpoint yet: the same command starts anew" in text
    assert nursery.run(*words)[0] == 0, "the same command, without --resume"
    assert same(bits(tmp_path / "run"), bits(whole))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_signal_while_a_checkpoint_is_written(nursery: Nursery, whole: Path, tmp_path: Path, call: str) -> None:
    names = json.loads((whole.parent / "moments.json").read_text())
    moment = [place for place, name in enumerate(names) if name == call][4]
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", tmp_path / "run", "--quiet"]
    stop = f"moments.do_at({moment}, lambda: os.kill(os.getpid(), signal.SIGINT))"
    status, text = nursery.run(*words, before=stop)
    assert status == 130
    assert text.count("\n") == 1
    assert left_over(tmp_path / "run") == [], "what was half written is gone"
    assert nursery.run(*words, "--resume")[0] == 0
    assert same(bits(tmp_path / "run"), bits(whole))


AMID_LOCKS = """
import queue
class Torn(queue.Queue):
    def _put(self, item):
        os.kill(os.getpid(), signal.SIGTERM)
        super()._put(item)
moments.at_step(15, lambda: Torn().put(1))
"""


def test_a_signal_that_comes_amid_locks_ends_the_run_a_moment_later(nursery: Nursery, tmp_path: Path) -> None:
    """It goes on until then, and Lightning does not end it before, with status 0 and without a word."""
    words = ["train", "--config", recipe(tmp_path, epochs=2000), "--out", tmp_path / "run", "--quiet"]
    status, text = nursery.run(*words, before=AMID_LOCKS)
    assert (status, text.count("\n")) == (143, 1)
    assert "interrupted by SIGTERM" in text
    assert left_over(tmp_path / "run") == []


def test_an_ignored_signal_stays_ignored(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    """As under nohup."""
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", tmp_path / "run", "--quiet"]
    hang_up = "moments.at_step(5, lambda: os.kill(os.getpid(), signal.SIGHUP))"
    before = f"signal.signal(signal.SIGHUP, signal.SIG_IGN); {hang_up}"
    assert nursery.run(*words, before=before)[0] == 0
    assert same(bits(tmp_path / "run"), bits(whole))


def test_a_signal_that_comes_twice_is_one(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    """As of `timeout`, which sends it to a process and to its group; a third one, later, ends what hangs at once."""
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", tmp_path / "run", "--quiet"]
    twice = "os.kill(os.getpid(), signal.SIGTERM)"
    before = f"""
from lt_kernels.train.run.logs import EpochLog
close = EpochLog.teardown
def again(*rest):
    {twice}
    close(*rest)
EpochLog.teardown = again
moments.at_step(15, lambda: {twice})
"""
    status, text = nursery.run(*words, before=before)
    assert (status, text.count("\n")) == (143, 1)
    assert left_over(tmp_path / "run") == []
    late = before.replace("def again(*rest):", "def again(*rest):\n    __import__('time').sleep(1.1)")
    assert nursery.run(*words, "--resume", before=late.replace("step(15", "step(3")) == (143, "")
    assert nursery.run(*words, "--resume")[0] == 0
    assert same(bits(tmp_path / "run"), bits(whole))


# two methods over two seeds, two at a time
COMPARE = ["compare", "--data", "digits-lt", "--methods", "ce,bs", "--seeds", "2", "--jobs", "2", "--quiet"]


def workers_of(child: Child) -> list[int]:
    """The processes that a comparison has forked; what multiprocessing starts beside them has another command line."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in group(child.pid)}
    return [pid for pid, line in lines.items() if line == lines[child.pid] and pid != child.pid]


STAGES = ("comparison.yaml", "*/*/config.yaml", "*/*/last.ckpt", "*/*/result.json", "table.csv")


def reached(out: Path) -> int:
    """How far a comparison of four runs is, up to 14: the files that it has made."""
    return sum(len(list(out.glob(name))) for name in STAGES)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find processes in")
@pytest.mark.parametrize("number", [*STATUS, signal.SIGKILL], ids=lambda number: number.name)
def test_a_comparison_and_all_of_its_processes_end(
    nursery: Nursery, tmp_path: Path, number: signal.Signals, number_of_moments: int
) -> None:
    """Ctrl-C reaches the whole group, as from a terminal, the others the comparison alone; once in the suite, within
    the first runs, and from its first file to its report with `make inject`. After that moment the first runs are
    under way for longer than is waited for the end of their processes.

    How the processes are started makes no difference to what SIGTERM and SIGHUP do to the comparison.
    """
    count = number_of_moments
    stages = [5] if count == 2 else [1 + round(13 * place / (count - 1)) for place in range(count)]
    epochs = "4000" if count == 2 else "60"
    before = FORKS if count == 2 and number in (signal.SIGTERM, signal.SIGHUP) else ""
    for stage in stages:
        out = tmp_path / str(stage)
        words = [*COMPARE, "--epochs", epochs, "--out", str(out)]
        child = nursery.start(*words, before=before)
        until(lambda out=out, stage=stage: reached(out) >= stage)
        (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
        assert child.wait() == STATUS.get(number, -number), child.text()
        if number != signal.SIGKILL:
            line = f"lt-kernels compare: interrupted by {number.name}; (?:.*; )?go on with: lt-kernels (.*)\n"
            found = re.fullmatch(line, child.text())
            assert found is not None, child.text()
            assert found[1] == " ".join([*words, "--resume"])
        until(lambda pid=child.pid: group(pid) == [], seconds=10)
        if number != signal.SIGKILL:  # all have closed their files
            assert not list(out.rglob("*.lock"))
            assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find processes in")
def test_a_dead_worker_ends_a_comparison_which_resumes_to_the_same_bits(nursery: Nursery, tmp_path: Path) -> None:
    """Both of the first runs are held within the second of three epochs, of ten steps each; then one dies."""
    words = [*COMPARE, "--epochs", "3", "--set", "batch_size=32", "--set", "checkpoint_epochs=1"]
    words += ["--out", str(tmp_path / "out")]
    held = f"{FORKS}\nmoments.at_step(15, lambda: __import__('time').sleep(100))"
    child = nursery.start(*words, before=held)
    until(lambda: len(list((tmp_path / "out").glob("*/seed-0/last.ckpt"))) == 2)
    os.kill(workers_of(child)[0], signal.SIGKILL)
    assert child.wait() == 1
    assert re.match(r"lt-kernels compare: the process of (ce|bs), seed \d was ended by SIGKILL", child.text())
    assert "go on with: lt-kernels compare" in child.text()
    until(lambda: group(child.pid) == [], seconds=10)
    resumed = [word if word != "2" or place != words.index("--jobs") + 1 else "1" for place, word in enumerate(words)]
    threads = ["--set", f"threads={max(1, len(os.sched_getaffinity(0)) // 2)}"]
    assert nursery.run(*resumed, *threads, "--resume")[0] == 0
    single = [*resumed[:-1], str(tmp_path / "alone"), *threads]
    assert nursery.run(*single)[0] == 0
    for method in ("ce", "bs"):
        for seed in ("seed-0", "seed-1"):
            place = Path(method) / seed
            assert same(bits(tmp_path / "out" / place), bits(tmp_path / "alone" / place)), place


@pytest.mark.slow
def test_two_runs_in_one_folder(nursery: Nursery, tmp_path: Path) -> None:
    """The second is told of the first, whose process ends in its own time; then the folder is free."""
    out = tmp_path / "run"
    words = ["train", "--config", recipe(tmp_path, epochs=500), "--out", out, "--quiet"]
    first = nursery.start(*words)
    until(lambda: (out / "last.ckpt").exists())
    status, text = nursery.run(*words, "--resume")
    assert status == 2
    assert re.match(rf"lt-kernels train: '{out}' is being written by process {first.pid} on \S+, since [\d: -]+;", text)
    assert nursery.run("analyze", tmp_path, "--out", out)[0] == 2
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert nursery.run(*words, "--resume", before="moments.at_step(1, moments.die)")[0] == -signal.SIGKILL
