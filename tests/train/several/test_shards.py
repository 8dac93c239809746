"""Checkpoints of what is sharded, in a group of one process: whole or not there, and read for any layout."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("lightning", reason="the extra [train] is not installed")

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from lt_kernels.core.checks import is_dtensor
from lt_kernels.heads import LinearHead
from lt_kernels.losses import CrossEntropyLoss
from lt_kernels.system.interrupts import Interrupted
from lt_kernels.train.errors import ConfigError, RunFailed
from lt_kernels.train.files import shards
from lt_kernels.train.files.tensors import read_sealed, write_sealed
from lt_kernels.train.model.layout import put_together, take_apart
from lt_kernels.train.ranks.mesh import shard_network

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A group of this process alone."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def checkpoint(head: torch.nn.Module, momentum: float) -> dict[str, Any]:
    state = {index: {"momentum_buffer": one.detach() * momentum} for index, one in enumerate(head.parameters())}
    return {"state_dict": head.state_dict(), "optimizer_states": [{"state": state, "param_groups": []}]}


def test_what_is_sharded_comes_back_whole_and_sharded(mesh: Any, tmp_path: Path) -> None:
    """Weights and momentum; what is not sharded stays in the file."""
    head = LinearHead(4, 3, CrossEntropyLoss(weight=torch.ones(3)), mesh=mesh)
    write_sealed(take_apart(checkpoint(head, 2.0), tmp_path), tmp_path / "last.ckpt")
    kept = read_sealed(tmp_path / "last.ckpt")
    assert set(kept["state_dict"]) == {"loss.weight"}
    assert kept["shards"]["names"] == [
        *("optimizer.0.momentum_buffer", "optimizer.1.momentum_buffer", "state.bias", "state.weight"),
    ]
    for other in (LinearHead(4, 3, head.loss), LinearHead(4, 3, head.loss, mesh=mesh)):
        found = read_sealed(tmp_path / "last.ckpt")
        found["shards"]["beside"] = str(tmp_path)
        put_together(found, other, other.parameters())
        other.load_state_dict(found["state_dict"])
        for index, (one, own) in enumerate(zip(other.parameters(), head.parameters(), strict=True)):
            moved = found["optimizer_states"][0]["state"][index]["momentum_buffer"]
            assert is_dtensor(moved) == is_dtensor(one)
            assert torch.equal(torch.as_tensor(getattr(one, "_local_tensor", one)), own.full_tensor())  # type: ignore[attr-defined]
            assert torch.equal(getattr(moved, "_local_tensor", moved), 2 * own.full_tensor())  # type: ignore[attr-defined]


def test_a_whole_checkpoint_is_shared_out(mesh: Any) -> None:
    whole = LinearHead(4, 3, CrossEntropyLoss())
    found, sharded = checkpoint(whole, 3.0), LinearHead(4, 3, CrossEntropyLoss(), mesh=mesh)
    assert take_apart(found, Path("/nonexistent")) is found  # nothing is sharded, nothing is written
    put_together(found, sharded, sharded.parameters())
    sharded.load_state_dict(found["state_dict"])
    assert torch.equal(sharded.weight.full_tensor(), whole.weight)  # type: ignore[attr-defined]
    moved = found["optimizer_states"][0]["state"][0]["momentum_buffer"]
    assert torch.equal(moved.full_tensor(), 3 * whole.weight)


def test_a_save_that_ends_anywhere_leaves_the_one_before(
    mesh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While shards are written, or after them: the checkpoint names the shards that it had, and they are whole."""
    head = LinearHead(4, 3, CrossEntropyLoss(), mesh=mesh)
    write_sealed(take_apart(checkpoint(head, 1.0), tmp_path), tmp_path / "last.ckpt")
    about = read_sealed(tmp_path / "last.ckpt")["shards"]
    take_apart(checkpoint(head, 5.0), tmp_path)  # and no file that names these
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_checksums", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            take_apart(checkpoint(head, 7.0), tmp_path)
    assert len(list(tmp_path.glob("shards-*"))) == 3
    assert read_sealed(tmp_path / "last.ckpt")["shards"] == about
    shards.check_shards(about, tmp_path, 0, 1)
    read = {"optimizer.0.momentum_buffer": torch.zeros(3, 4)}
    shards.read_shards(about, tmp_path, read)
    assert torch.equal(read["optimizer.0.momentum_buffer"], head.weight.full_tensor())  # type: ignore[attr-defined]
    shards.remove_shards(tmp_path, about["folder"])
    assert [path.name for path in tmp_path.glob("shards-*")] == [about["folder"]]


@pytest.mark.parametrize("name", ["../elsewhere", "../shards-0123456789abcdef", "/tmp/shards-0123456789abcdef"])
def test_a_folder_that_is_none_of_shards_is_not_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"names the folder '{name}'"):
        shards.read_shards({"folder": name}, tmp_path, {})
    with pytest.raises(ConfigError, match=f"names the folder '{name}'"):
        shards.check_shards({"folder": name, "sha256": {}}, tmp_path, 0, 1)


class Touch:
    """What a pickle executes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_lies_beside_a_checkpoint_is_not_executed(mesh: Any, tmp_path: Path) -> None:
    """Neither torch's index, which is not read, nor a share, and nothing is read but the files that were checked."""
    head = LinearHead(4, 3, CrossEntropyLoss(), mesh=mesh)
    about = take_apart(checkpoint(head, 1.0), tmp_path)["shards"]
    inside, read = tmp_path / about["folder"], {"state.weight": torch.zeros(3, 4)}
    (inside / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    shards.check_shards(about, tmp_path, 0, 1)
    shards.read_shards(about, tmp_path, read)
    assert torch.equal(read["state.weight"], head.weight.full_tensor())  # type: ignore[attr-defined]
    (inside / "__0_0.distcp").write_bytes(pickle.dumps(Touch(tmp_path / "executed")) + bytes(10_000))
    with pytest.raises(RunFailed, match=about["folder"]):
        shards.read_shards(about, tmp_path, read)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ConfigError, match=r"whose .* lies in the unknown '__0_0.distcp'"):
        shards.read_shards({**about, "sha256": {}}, tmp_path, read)


def test_a_full_disk_is_an_error_of_the_system(mesh: Any, tmp_path: Path) -> None:
    """Torch reports what failed on any process as an exception that nobody catches, and of a file that cannot grow its
    own position in it: small files end when they are flushed, large ones as they are written.
    """
    resource = pytest.importorskip("resource", reason="needs a limit of the size of files")
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for width in (4, 512):
        head = LinearHead(width, 3, CrossEntropyLoss(), mesh=mesh)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
        try:
            with pytest.raises(OSError, match=r"File too large: '.*/shards-[0-9a-f]{16}'"):
                take_apart(checkpoint(head, 1.0), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)


def test_shards_that_do_not_fit_or_are_gone_end_the_run_in_one_line(mesh: Any, tmp_path: Path) -> None:
    head = LinearHead(4, 3, CrossEntropyLoss(), mesh=mesh)
    about = take_apart(checkpoint(head, 1.0), tmp_path)["shards"]
    with pytest.raises(RunFailed, match=about["folder"]):
        shards.read_shards(about, tmp_path, {"state.weight": torch.zeros(4, 4)})
    os.remove(tmp_path / about["folder"] / "__0_0.distcp")
    with pytest.raises(FileNotFoundError, match=about["folder"]):
        shards.read_shards(about, tmp_path, {"state.weight": torch.zeros(3, 4)})


def test_a_network_is_sharded_by_its_blocks(mesh: Any) -> None:
    """Parts of sequences that have parameters, and the network around them; what it computes stays."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    inputs = torch.randn(3, 4)
    expected = network(inputs)
    shard_network(network, mesh)
    kinds = [type(part).__name__.startswith("FSDP") for part in (*network, network)]
    assert kinds == [True, False, True, True]
    torch.testing.assert_close(network(inputs), expected)
    assert is_dtensor(distribute_tensor(inputs, mesh))


def test_a_signal_that_one_process_gets_is_told_the_others() -> None:
    """As errors are, while shards are written: pickled."""
    told = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert (type(told), told.status, str(told)) == (Interrupted, 143, "interrupted by SIGTERM")
