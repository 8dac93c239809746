"""Runs in several processes that are cut short and go on: in as many to the bit, in others from the same state."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from cuts import cut
from processes import SETTINGS, Run, train_together

from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.files.tensors import read_sealed
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

pytestmark = pytest.mark.slow

# Each has weights that come at the second of three epochs of seven steps; checkpoints lie within epochs.
MOVING: dict[str, Any] = {
    "method": "ldam-drw-lwr",
    "method_options": {"drw_start": 0.34, "lwr_threshold": 0.0},
    "epochs": 3,
    "checkpoint_steps": 3,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"logger": "csv"},
    "fsdp": {"strategy": "fsdp", "accumulate": 2},
    "sharded": {"head": "sharded"},
}
RANDOM: dict[str, Any] = {"mixup_alpha": 0.5, "augment": "shift"}
CUTS = (5, 12)  # within the first and the second epoch: what came after steps 3 and 12 is done again


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` in one process; each layout in 2, then 3, then 1; and, of randomness, in 2 with and without a cut."""
    root = tmp_path_factory.mktemp("resume")
    train_run(make_config({**SETTINGS, **MOVING}), root / "whole")
    layouts = {name: {**MOVING, **changes} for name, changes in LAYOUTS.items()}
    twice = {name: {**changes, **RANDOM} for name, changes in layouts.items()}
    first = [Run(root / name, changes, until=CUTS[0]) for name, changes in layouts.items()]
    first += [Run(root / f"{name}-whole", changes) for name, changes in twice.items()]
    first += [Run(root / f"{name}-cut", changes, until=CUTS[1] + 2) for name, changes in twice.items()]
    first += [Run(root / f"{name}-cut", changes, resume=True) for name, changes in twice.items()]
    second = [Run(root / name, changes, resume=True, until=CUTS[1]) for name, changes in layouts.items()]
    for world, runs in ((2, first), (3, second)):
        said = train_together(world, runs)
        assert {str(run.folder): some for run, some in zip(runs, said, strict=True) if any(some)} == {}
    for name, changes in layouts.items():
        settings = {**SETTINGS, **changes, "accumulate": 1}
        if name == "ddp":  # once more within an epoch, from the state that three processes left
            cut(CUTS[1] + 4, lambda settings=settings: train_run(make_config(settings), root / "ddp", resume=True))
        train_run(make_config(settings), root / name, resume=True)
    return root


def test_the_first_process_alone_tells_a_logger(root: Path) -> None:
    """Trained in 2, 3, 1 and 1 processes: a record each, that of the last one whole."""
    found = {}
    for path in (root / "ddp" / "lightning_logs").glob("*/metrics.csv"):
        with path.open(newline="") as file:
            found[path.parent.name] = [row["step"] for row in csv.DictReader(file)]
    assert found == {
        "version_1": ["1"],
        "version_2": ["1", "2"],
        "version_3": ["1", "2", "3"],
    }  # cut first in the first


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_three_and_one_processes_train_one_run(root: Path, name: str) -> None:
    """With its momentum, its deferred weights and its rows: what one process trains at a stretch."""
    expected = load_run(root / "whole")[2].state_dict()
    for key, value in load_run(root / name)[2].state_dict().items():
        torch.testing.assert_close(
            value, expected[key], rtol=2e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    rows, before = read_rows(root / name), read_rows(root / "whole")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in before], rel=1e-4)
    moved = read_sealed(root / name / "last.ckpt")["optimizer_states"][0]["state"]
    kept = read_sealed(root / "whole" / "last.ckpt")["optimizer_states"][0]["state"]
    for index, moments in kept.items():
        torch.testing.assert_close(moved[index]["momentum_buffer"], moments["momentum_buffer"], rtol=2e-4, atol=1e-4)
    assert not list((root / name).glob("shards-*"))  # one process has nothing that is sharded


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_number_of_processes_goes_on_to_the_bit(root: Path, name: str) -> None:
    """Of augmentation and mixing, each process draws from the stream that it had."""
    whole, resumed = root / f"{name}-whole", root / f"{name}-cut"
    expected = load_run(whole)[2].state_dict()
    for key, value in load_run(resumed)[2].state_dict().items():
        assert torch.equal(value, expected[key]), key
    first, second = (read_sealed(folder / "last.ckpt") for folder in (whole, resumed))
    assert str(first["callbacks"]["ExactResume"]) == str(second["callbacks"]["ExactResume"])
    assert len(first["callbacks"]["ExactResume"]["ranks"]) == 2
    rows = [[{key: row[key] for key in row if key != "seconds"} for row in read_rows(one)] for one in (whole, resumed)]
    assert rows[0] == rows[1]


def test_damaged_shards_are_an_error_that_names_them(root: Path, tmp_path: Path) -> None:
    folder = root / "fsdp-whole"
    (file,) = folder.glob("shards-*/__1_0.distcp")
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"__1_0.distcp' was changed or damaged"):
        load_run(folder)
    file.unlink()
    with pytest.raises(ConfigError, match=r"must hold the files .*__1_0.distcp"):
        load_run(folder)
    file.write_bytes(kept)
    load_run(folder)
