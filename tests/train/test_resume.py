"""kill -9 at any moment, then --resume: the same bits as a run that was left alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from forked import TRAINER, Script, parent_of

from lt_kernels import cli
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.run.loading import load_run

pytestmark = pytest.mark.slow

# LDAM's deferred weights come at epoch 2 of 4; mixup draws from torch's generator at every step; 10 steps an epoch.
RECIPE = """
data: digits-lt
method: ldam-drw-lwr
method_options: {drw_start: 0.5, lwr_threshold: 0.0}
epochs: 4
batch_size: 32
lr: 0.05
warmup_epochs: 1
mixup_alpha: 0.5
validate_every: 2
checkpoint_steps: 4
threads: 1
"""

# How a child dies, in words of the program that it runs: always by its own hand, so that the moment is exact.
PRELUDE = """
import os, signal, sys
from lt_kernels import cli
from lt_kernels.train.run import training

def die(*ignored, **also):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_step(step):
    before = training.EpochSettings.on_train_batch_start
    def after(self, trainer, *rest):
        die() if trainer.global_step == step else before(self, trainer, *rest)
    training.EpochSettings.on_train_batch_start = after

def die_while_writing(number):
    write, count = os.write, [0]
    def half(descriptor, data):
        count[0] += len(data) > 100_000  # a checkpoint, and no other file
        if count[0] == number:
            write(descriptor, data[: len(data) // 2])
            die()
        return write(descriptor, data)
    os.write = half
"""
DEATHS = {
    "before the first checkpoint": "die_at_step(2)",
    "within an epoch": "die_at_step(15)",
    "at the start of an epoch": "die_at_step(20)",
    "within an epoch after the weights came": "die_at_step(36)",
    "while a checkpoint is written": "die_while_writing(5)",
    "before the result is written": "training.write_whole = die",
}


def start(folder: Path, recipe: Path) -> Script:
    words = ("train", "--config", recipe, "--out", folder, "--quiet")
    return parent_of(*TRAINER).start("lt_kernels", *words, log=recipe.parent / "log", surroundings=os.environ)


def die_all(root: Path, recipe: Path) -> list[int]:
    """The signals that ended one process for each death; forked from one, which has imported what they need."""
    lines, program = [PRELUDE], root / "die.py"
    for name, death in DEATHS.items():
        words = ["train", "--config", str(recipe), "--out", str(root / name), "--quiet"]
        lines += ["if os.fork() == 0:", f"    {death}", f"    cli.main({words!r})", "    os._exit(0)"]
        lines += ["print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)"]
    program.write_text("\n".join(lines))
    child = parent_of(*TRAINER).start(program, log=root / "deaths", surroundings=os.environ)
    assert child.wait() == 0
    return [int(word) for word in child.printed().split()]


def resume(folder: Path, recipe: Path) -> None:
    assert cli.main(["train", "--config", str(recipe), "--out", str(folder), "--quiet", "--resume"]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run left alone (`whole`), and one for each death, killed and resumed."""
    root = tmp_path_factory.mktemp("runs")
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert cli.main(["train", "--config", str(recipe), "--out", str(root / "whole"), "--quiet"]) == 0
    assert die_all(root, recipe) == [-signal.SIGKILL] * len(DEATHS)
    for name in DEATHS:
        assert read_result(root / name) is None
        torch.manual_seed(1)  # the state that a resumed process happens to have must not matter
        resume(root / name, recipe)
    return root


def state(folder: Path) -> dict:
    return torch.load(folder / "last.ckpt", weights_only=True)


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first if key != "seconds")
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second))
    return first == second


def untimed(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_rows(folder)]


@pytest.mark.parametrize("name", DEATHS)
def test_killed_and_resumed_is_bit_identical(runs: Path, name: str) -> None:
    """Weights, momentum, deferred weights, generators and counters; everything but the clock."""
    whole, resumed = state(runs / "whole"), state(runs / name)
    assert load_run(runs / name)[2].head.loss.weight is not None
    for key in ("state_dict", "optimizer_states", "callbacks", "loops", "global_step", "epoch"):
        assert same(whole[key], resumed[key]), key


@pytest.mark.parametrize("name", DEATHS)
def test_no_row_is_lost_or_doubled(runs: Path, name: str) -> None:
    assert [row["epoch"] for row in read_rows(runs / name)] == [1, 2, 3, 4]
    assert untimed(runs / name) == untimed(runs / "whole")
    assert read_result(runs / name)["per_class"] == read_result(runs / "whole")["per_class"]


def test_a_kill_while_writing_leaves_the_checkpoint_before(runs: Path) -> None:
    """The half-written file lay beside the good one, and whoever went on removed it."""
    names = {path.name for path in (runs / "while a checkpoint is written").iterdir()}
    assert names == {path.name for path in (runs / "whole").iterdir()}


def test_killed_from_outside(tmp_path: Path) -> None:
    """The moment is chance here; the run is long enough that some epochs are left."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("epochs: 4", "epochs: 30"))
    child = start(tmp_path / "killed", recipe)
    table = tmp_path / "killed" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (table.exists() and table.read_text().count("\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert state(tmp_path / "killed")["global_step"] < 300
    resume(tmp_path / "killed", recipe)
    assert cli.main(["train", "--config", str(recipe), "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    assert same(state(tmp_path / "whole")["state_dict"], state(tmp_path / "killed")["state_dict"])
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "killed")
