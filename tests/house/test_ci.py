"""`.ci/run`: a step that fails fails the run, and the last line that is printed is that of pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "run"
MAKE = """#!/bin/sh
echo "make $1"
[ "$1" = "$FAILING" ] && status=2 || status=0
[ "$1" = test ] && echo "== 3 passed in 0.10s =="
exit $status
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not here")
@pytest.mark.parametrize(("failing", "status"), [("", 0), ("lint", 2), ("test", 2)])
def test_every_step_counts_and_pytest_has_the_last_word(failing: str, status: int, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(MAKE, encoding="utf-8")
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{make.parent}{os.pathsep}{os.environ['PATH']}", "FAILING": failing}
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert {"make lint", "make test"} <= set(done.stdout.splitlines())
    assert done.stdout.splitlines()[-1] == "== 3 passed in 0.10s =="
