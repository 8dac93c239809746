"""What measures the host time of calls on a GPU, without one: the GPU's way is taken, without the launch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks.gpu import host

ROOT = Path(__file__).resolve().parents[3]


def test_goals_are_judged_by_the_time_of_eager_torch() -> None:
    found = {"offset CE": ([90.0, 110.0, 500.0], 2.0), "linear": ([250.0], 4.0), host.EAGER: ([160.0], 0.0)}
    text = host.table(found)
    assert "| offset CE | 2 | 110 | 55 | 60 | yes |" in text
    assert "| linear | 4 | 250 | 125 | 120 | no |" in text
    assert f"| {host.EAGER} | 0 | 160 | 80 |  |  |" in text


@pytest.mark.slow
def test_every_call_launches(pytestconfig: pytest.Config) -> None:
    """In a process of its own, because this one may have imported Triton's interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    kept = getattr(pytestconfig, "cache", None)
    environment |= {} if kept is None else {"TRITON_CACHE_DIR": str(kept.mkdir("triton"))}
    command = [sys.executable, "-m", "benchmarks.gpu.host", "--calls", "2", "--rounds", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^\| ([^|]+) \| (\S+) \|", done.stdout, flags=re.MULTILINE))
    for name in (*host.GOALS, "lwr"):
        assert float(rows[name]) >= 1, done.stdout
    assert float(rows[host.EAGER]) == 0
