"""FSDP2 around models that hold our heads, built on the meta device and filled after they were sharded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
def test_deferred_heads_are_those_of_one_process(tmp_path: Path) -> None:
    """Each of two processes checks every head by itself; the first traceback is the test's."""
    path = os.pathsep.join([*map(str, (HERE.parents[1], HERE.parent, HERE)), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "deferred.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    reports = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("rank*.txt"))]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(reports + said)
