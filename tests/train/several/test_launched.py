"""Processes of the command line: started by it or by torchrun, killed, in error, and told what they cannot do."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from forked import TRAINER, Script, parent_of
from processes import ROOT, SETTINGS

from lt_kernels.train.compare.jobs import plan
from lt_kernels.train.config import PLACEMENT, TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import write_config
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.ranks import launch
from lt_kernels.train.ranks.group import ALONE, Ranks
from lt_kernels.train.run.checks import check_ranks

LONG = TrainConfig(**{**SETTINGS, "epochs": 2000, "devices": 2})


@contextlib.contextmanager
def started(folder: Path, *words: str) -> Iterator[Script]:
    """The command line; what it says is kept in a folder, and what is left of it in the end is killed."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    words = ("train", "--quiet", *words)
    child = parent_of(*TRAINER).start("lt_kernels", *words, log=folder / "log", surroundings=surroundings)
    try:
        yield child
    finally:
        child.kill()


def ranks_of(parent: int) -> dict[int, int]:
    """The processes that a launcher has started: their ids by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, environment = path.joinpath("stat").read_text(), path.joinpath("environ").read_text()
        except OSError:
            continue
        rank = re.search(r"(?:^|\0)RANK=(\d+)", environment)
        if rank is not None and int(status.rpartition(")")[2].split()[1]) == parent:
            found[int(rank[1])] = int(path.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the processes")
def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    """Status 1 and what to do next, within seconds and not at the time-out; one process then finishes the run."""
    write_config(LONG, tmp_path / "config.yaml")
    folder = tmp_path / "run"
    with started(tmp_path, "--config", str(tmp_path / "config.yaml"), "--out", str(folder)) as child:
        wait_for(child, lambda: (folder / "last.ckpt").exists())
        processes = ranks_of(child.pid)
        assert sorted(processes) == [0, 1]
        os.kill(processes[1], signal.SIGKILL)
        killed = time.monotonic()
        assert child.wait() == 1
        assert time.monotonic() - killed < LONG.timeout / 2
    said = child.said()
    assert "process 1 of 2 was ended by SIGKILL" in said
    assert f"lt-kernels train --resume --out {folder}" in said
    assert not (folder / "failed.txt").exists()  # it was ended from outside
    done = read_rows(folder)[-1]["epoch"]
    with started(tmp_path, "--resume", "--out", str(folder), "--set", "devices=1") as child:
        wait_for(child, lambda: read_rows(folder)[-1]["epoch"] >= done + 5)
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait() == 128 + signal.SIGTERM


def wait_for(child: Script, condition: Callable[[], bool]) -> None:
    """Wait until a run has come so far."""
    deadline = time.monotonic() + 120
    while not condition():
        assert child.lives(), child.said()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(tmp_path: Path) -> None:
    """It is found in the processes, when the network is made; each would say it."""
    write_config(LONG.replace(network_options={"hidden": [0]}), tmp_path / "config.yaml")
    with started(tmp_path, "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")) as child:
        assert child.wait() == 2
    said = child.said()
    assert child.printed() == ""
    assert said.count("lt-kernels train: network mlp") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_processes_are_as_torchrun_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.placement(TrainConfig()) == (1, 1)
    assert launch.placement(TrainConfig(devices=3)) == (3, 1)
    with pytest.raises(ConfigError, match="nodes must be 0 or 1 unless torchrun starts"):
        launch.placement(TrainConfig(nodes=2))
    assert (launch.launched(), launch.rank(), launch.restarted()) == (False, 0, False)
    variables = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.placement(TrainConfig()) == (4, 2)
    assert launch.placement(TrainConfig(devices=4, nodes=2)) == (4, 2)
    with pytest.raises(ConfigError, match="devices must be 0 or 4, as torchrun has started the processes, got 2"):
        launch.placement(TrainConfig(devices=2))
    with pytest.raises(ConfigError, match="nodes must be 0 or 2"):
        launch.placement(TrainConfig(nodes=1))
    assert (launch.launched(), launch.rank(), launch.restarted()) == (True, 5, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch.restarted()
    with pytest.raises(ConfigError, match="run it without torchrun"):
        plan({}, ["ce"], 1, Path(), 1)


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        (
            {"batch_size": 3},
            Ranks(0, 4, 4),
            "batch_size must be at least 4, for 4 processes and 1 micro-batches, got 3",
        ),
        ({"batch_size": 5, "accumulate": 3}, Ranks(0, 2, 2), "batch_size must be at least 6"),
        ({"record": True}, Ranks(0, 2, 2), "record must be false with several processes"),
        ({"record": True, "accumulate": 2}, ALONE, "record must be false with several processes or accumulate above 1"),
        ({"sync_batch_norm": True}, Ranks(0, 2, 2), "sync_batch_norm must be false without GPUs"),
    ],
)
def test_what_does_not_go_with_several_processes_is_named(changes: dict, ranks: Ranks, message: str) -> None:
    check_ranks(TrainConfig(), ranks)
    with pytest.raises(ConfigError, match=message):
        check_ranks(TrainConfig(**changes), ranks)


@pytest.mark.parametrize("key", ["devices", "nodes"])
def test_a_run_of_a_comparison_has_one_process(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be 0 or 1 in a comparison"):
        plan({key: 2}, ["ce"], 1, Path(), 1)


def test_where_a_run_is_computed_does_not_make_it_another() -> None:
    """Only these keys may change when a run goes on."""
    moved = TrainConfig(devices=2, nodes=3, strategy="fsdp", head="sharded", accumulate=2, timeout=5)
    assert moved != TrainConfig()
    assert moved.settings() == TrainConfig().settings()
    assert set(moved.as_dict()) - set(moved.settings()) == set(PLACEMENT)
    assert TrainConfig(clip=1.0).settings() != TrainConfig().settings()


def test_one_process_is_a_group_of_its_own() -> None:
    """What processes share is what one has, and no process group is asked."""
    assert ALONE.lead(lambda: 3) == 3
    assert ALONE.alike(lambda: 4) == 4
    assert ALONE.each("x") == ["x"]
    value = torch.arange(3)
    assert ALONE.total(value) is value
    assert ALONE.joined(value, 3) is value
    assert Ranks(1, 3, 3).share(8) == [3, 3, 2]
