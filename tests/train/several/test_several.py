"""Runs in several processes: what one process trains, to rounding, however its network and its batches are dealt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from processes import SETTINGS, Run, still_batch_norm, train_together

from lt_kernels.train.config import make_config
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.files.tensors import read_sealed
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

pytestmark = pytest.mark.slow

LWR = {"method": "bs-lwr", "method_options": {"lwr_threshold": 0.0}}
DRW = {"method": "ldam-drw", "method_options": {"drw_start": 0.5}}
SCENES = {
    "data": "digit-scenes",
    "data_options": {"most": 100, "test_per_class": 2},
    "batch_size": 5,
    "network": "unet",
    "network_options": {"width": 4},
    "epochs": 1,
    "epoch_steps": 2,
}
# A loss of rows alone, clipped; means that weights divide; second stages; and losses of pairs, centres, queues, columns
# and counts of a batch, also where the last of 61 scenes is a batch by itself, of which the second process has none.
METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "bs-lwr": {**LWR, "clip": 0.1},
    "ldam-drw": DRW,
    "cosface": {"method": "cosface"},
    "crt": {"method": "crt"},
    "lws": {"method": "lws"},
    "estimated-offset": {"method": "estimated-offset", "method_options": {"center_weight": 0.03}},
    "bcl": {"method": "bcl"},
    "gml": {"method": "gml", "method_options": {"queue": 64}},
    "ncl": {"method": "ncl"},
    "lade": {"method": "lade"},
    "arb-batch": {"method": "arb-batch"},
    "scenes": SCENES,
    "scenes-arb": {**SCENES, "method": "arb-batch"},
    "scenes-arb-one": {**SCENES, "method": "arb-batch", "batch_size": 60, "epoch_steps": 0},
}
ACCUMULATED = ("ce", "bs-lwr", "ldam-drw")
FSDP = ("ce", "bs-lwr", "ldam-drw", "crt", "bcl")
SHARDED = ("ce", "bs-lwr", "ldam-drw", "cosface")
# Rounding, of sums in another order: what 14 steps of a small network make of it.
CLOSE = {"rtol": 2e-4, "atol": 1e-5}


def cases() -> dict[int, dict[str, dict[str, Any]]]:
    """The runs in 1, 2, 3 and 4 processes, by names that begin with that of what they must equal."""
    two = {f"{name}/ddp": {} for name in METHODS}
    two |= {f"{name}/accumulate": {"accumulate": 2} for name in ACCUMULATED}
    two |= {f"{name}/fsdp": {"strategy": "fsdp"} for name in FSDP}
    two |= {"ce/fsdp-accumulate": {"strategy": "fsdp", "accumulate": 3}}
    two |= {f"{name}/sharded": {"head": "sharded"} for name in SHARDED}
    two |= {f"{name}/sharded-fsdp": {"head": "sharded", "strategy": "fsdp", "accumulate": 2} for name in SHARDED[:2]}
    three = {"ce/ddp": {}, "bcl/ddp": {}, "bs-lwr/fsdp": {"strategy": "fsdp"}, "cosface/sharded": {"head": "sharded"}}
    four = {"ldam-drw/sharded": {"head": "sharded", "accumulate": 2}}
    one = {f"{name}/accumulate": {"accumulate": 3} for name in ACCUMULATED}
    runs = {1: one, 2: two, 3: three, 4: four}
    return {
        world: {name: {**METHODS[name.split("/")[0]], **changes} for name, changes in some.items()}
        for world, some in runs.items()
    }


CASES = cases()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of CASES, and each method in one process."""
    root = tmp_path_factory.mktemp("several")
    with still_batch_norm():
        for name, changes in METHODS.items():
            train_run(make_config({**SETTINGS, **changes}), root / "whole" / name)
        for name, changes in CASES[1].items():
            train_run(make_config({**SETTINGS, **changes}), root / "1" / name)
    for world in (2, 3, 4):
        said = train_together(world, [Run(root / str(world) / name, changes) for name, changes in CASES[world].items()])
        assert {name: some for name, some in zip(CASES[world], said, strict=True) if any(some)} == {}
    return root


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """The weights of a finished run, whole, wherever their shards lie."""
    return load_run(folder)[2].state_dict()


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, some in CASES.items() for name in some])
def test_the_weights_are_those_of_one_process(root: Path, world: int, name: str) -> None:
    """And the losses of each epoch and the accuracies: 7 steps an epoch, the last of 4 samples."""
    whole, other = root / "whole" / name.split("/")[0], root / str(world) / name
    found, expected = weights(other), weights(whole)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")
    for row, before in zip(read_rows(other), read_rows(whole), strict=True):
        assert row["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert row["regularizer"] == pytest.approx(before["regularizer"], rel=1e-4, abs=1e-7)
        assert row["step"] == before["step"]
    accuracy, before = ((read_result(folder) or {})["accuracy"] for folder in (other, whole))
    assert accuracy == pytest.approx(before, abs=0.5)


@pytest.mark.parametrize("name", [name for name in CASES[2] if "fsdp" in name or "sharded" in name])
def test_what_is_sharded_lies_beside_the_checkpoint(root: Path, name: str) -> None:
    """Every rank wrote its own file, and nothing of earlier checkpoints is left."""
    folder = root / "2" / name
    about = read_sealed(folder / "last.ckpt")["shards"]
    assert [path.name for path in folder.glob("shards-*")] == [about["folder"]]
    assert {"__0_0.distcp", "__1_0.distcp"} == set(about["sha256"])
    moves = name != "crt/fsdp"  # whose second stage has moved a whole classifier alone
    assert any(name.endswith(".momentum_buffer") for name in about["names"]) == moves
