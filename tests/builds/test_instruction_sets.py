"""The kernels of every instruction set of this machine, at the public names, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lt_kernels.ops.backends import extension

TESTS = Path(__file__).resolve().parents[1]
FILES = ("functional/test_accuracy.py", "papers/test_published_gram.py")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["generic", "avx2"])
def test_precision_on_another_instruction_set(chosen: str) -> None:
    """A part of these tests, in a process of its own: the best set is what all other tests run on."""
    if not extension.built() or chosen not in extension.machine_sets(extension.module):
        pytest.skip(f"{chosen} kernels are not built, or not for this machine")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "compiled or shipped"]
    environment = {**os.environ, "LT_KERNELS_CPU": chosen, "OMP_NUM_THREADS": "1"}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    files = [str(TESTS / name) for name in FILES]
    done = subprocess.run([*command, *files], cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_this_process_runs_on_what_was_asked_for() -> None:
    """LT_KERNELS_CPU, or the best that there is."""
    if extension.built():
        best = extension.machine_sets(extension.module)[-1]
        assert extension.instruction_set() == (os.environ.get("LT_KERNELS_CPU") or best)
