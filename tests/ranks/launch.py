"""Several processes that go through the scenarios of a script together, and what each of them reports."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import parent_of
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

TESTS = Path(__file__).resolve().parent.parent
# What most scripts import, and what torch.compile does of its backends at its first call, whichever it calls.
IMPORTED = (
    *("pytest", "functorch.compile", "torch._inductor.lowering", "torch.distributed.fsdp"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.tensor.parallel"),
    *("lt_kernels.contrastive", "lt_kernels.distributed", "lt_kernels.heads"),
)
Scenario = Callable[[int, int, Any], None]


def reports(script: Path, world: int, folder: Path) -> dict[str, str]:
    """What went wrong in each scenario of a script, "" for nothing: one process for each rank, run once."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "ranks"), os.environ.get("PYTHONPATH", "")])
    surroundings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    parent = parent_of(*IMPORTED, strict=True)
    ranks = [
        parent.start(script, str(rank), str(world), folder, log=folder / f"rank{rank}.txt", surroundings=surroundings)
        for rank in range(world)
    ]
    statuses = [rank.wait() for rank in ranks]
    found: dict[str, str] = {"": "\n".join(rank.said() for rank in ranks) if any(statuses) else ""}
    for rank in range(world):
        kept = folder / f"rank{rank}.json"
        for name, report in json.loads(kept.read_text(encoding="utf-8") if kept.exists() else "{}").items():
            found[name] = found.get(name, "") + (f"rank {rank}: {report}\n" if report else "")
    return found


@functools.cache
def mesh_of(world: int) -> DeviceMesh:
    """The mesh of all ranks."""
    return init_device_mesh("cpu", (world,))


def main(scenarios: Sequence[Scenario], backend: str = "gloo") -> None:
    """Go through all scenarios as one rank; after one that fails the ranks may be out of step, and the others wait."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    done = {scenario.__name__: "not reached" for scenario in scenarios}
    for name, scenario in zip(done.copy(), scenarios, strict=True):
        torch.manual_seed(0)
        try:
            scenario(rank, world, dist.group.WORLD)
            done[name] = ""
        except BaseException:
            done[name] = traceback.format_exc()
            break
    if not any(done.values()):  # nobody leaves while another one reads from it
        with contextlib.suppress(RuntimeError):
            dist.barrier()
    (folder / f"rank{rank}.json").write_text(json.dumps(done), encoding="utf-8")
    sys.stderr.flush()
    os._exit(0 if not any(done.values()) else 1)  # a rank that is still waiting for another is not waited for
