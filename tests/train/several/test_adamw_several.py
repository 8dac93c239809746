"""AdamW and a schedule of torch's in two processes: the weights of one, from shards too, and a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jsonargparse", reason="the extra [train] is not installed")

from processes import SETTINGS, Run, train_together

from lt_kernels.train.config import make_config
from lt_kernels.train.files.tensors import read_sealed
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

pytestmark = pytest.mark.slow

# a large eps, because Adam divides what rounding alone has made by what rounding alone has made
OURS: dict[str, Any] = {
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": 1e-3}},
    "schedule": {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.95}},
    "schedule_interval": "step",
    "no_decay": ["*bias"],
    "lr_factors": {"head.*": 2.0},
    "lr": 0.01,
    "checkpoint_steps": 3,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {**OURS, "strategy": "fsdp", "accumulate": 2},
    "sharded": {**OURS, "head": "sharded"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` in one process; each layout in two, cut short, and gone on with in two, and in one."""
    root = tmp_path_factory.mktemp("adamw")
    train_run(make_config({**SETTINGS, **OURS}), root / "whole")
    runs = [Run(root / name, changes, until=10) for name, changes in LAYOUTS.items()]
    runs += [Run(root / f"{name}-alone", changes, until=10) for name, changes in LAYOUTS.items()]
    runs += [Run(root / name, changes, resume=True) for name, changes in LAYOUTS.items()]
    said = train_together(2, runs)
    assert {str(run.folder): some for run, some in zip(runs, said, strict=True) if any(some)} == {}
    for name, changes in LAYOUTS.items():
        train_run(make_config({**SETTINGS, **changes, "accumulate": 1}), root / f"{name}-alone", resume=True)
    return root


@pytest.mark.parametrize("name", [*LAYOUTS, *(f"{name}-alone" for name in LAYOUTS)])
def test_the_weights_are_those_of_one_process(root: Path, name: str) -> None:
    expected = load_run(root / "whole")[2].state_dict()
    for key, value in load_run(root / name)[2].state_dict().items():
        torch.testing.assert_close(
            value, expected[key], rtol=2e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    first, second = (read_sealed(root / one / "last.ckpt") for one in (name, "whole"))
    assert first["callbacks"]["ScheduleSteps"] == second["callbacks"]["ScheduleSteps"]
    assert [group["lr"] for group in first["optimizer_states"][0]["param_groups"]] == [
        group["lr"] for group in second["optimizer_states"][0]["param_groups"]
    ]
    if name.endswith("alone"):
        for index, moments in second["optimizer_states"][0]["state"].items():
            for kind in ("exp_avg", "exp_avg_sq"):
                found = first["optimizer_states"][0]["state"][index][kind]
                torch.testing.assert_close(found, moments[kind], rtol=2e-3, atol=1e-6)
