"""Runs in several processes, which the tests of them start themselves: one import of the trainer for many runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from forked import TRAINER, parent_of
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("worker.py")

# 304 samples: 7 steps an epoch, in the last of which three processes have no sample, or one, or two.
SETTINGS: dict[str, Any] = {
    "data": "digits-lt",
    "imbalance": 100,
    "network": "mlp",
    "network_options": {"hidden": [16]},
    "epochs": 2,
    "batch_size": 50,
    "lr": 0.05,
    "warmup_epochs": 1,
    "threads": 1,
    "timeout": 60,
}


def environment(rank: int, world: int) -> dict[str, str]:
    """What torchrun tells a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    return {
        **os.environ,
        **{name: str(number) for name, number in numbers.items()},
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclasses.dataclass
class Run:
    """One to train: its folder, changes of SETTINGS, whether it goes on, and the step at which it is cut short."""

    folder: Path
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    resume: bool = False
    until: int | None = None

    def job(self, port: int) -> dict[str, Any]:
        """What worker.py reads."""
        settings = {**SETTINGS, **self.changes}
        return {
            "settings": settings,
            "folder": str(self.folder),
            "resume": self.resume,
            "until": self.until,
            "port": port,
        }


def train_together(world: int, runs: list[Run]) -> list[list[str]]:
    """Train runs in `world` processes; what went wrong, by run and process."""
    jobs = [run.job(port) for run, port in zip(runs, free_ports(len(runs)), strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "jobs.json"
        listed.write_text(json.dumps(jobs), encoding="utf-8")
        parent = parent_of(*TRAINER)
        ranks = [
            parent.start(WORKER, listed, log=listed.with_name(f"{rank}.txt"), surroundings=environment(rank, world))
            for rank in range(world)
        ]
        statuses = [one.wait() for one in ranks]
        assert statuses == [0] * world, [one.said() for one in ranks]
        found = [json.loads(listed.with_name(f"jobs-{rank}.json").read_text()) for rank in range(world)]
    return [list(said) for said in zip(*found, strict=True)]


@contextlib.contextmanager
def still_batch_norm() -> Iterator[None]:
    """Have batch norm train with its running statistics: those of a batch are a rank's own, and not the whole's."""

    def forward(self: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.BatchNorm2d, "forward", forward)
        yield
