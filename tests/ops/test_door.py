"""Operators called directly: what would be read or written outside of its memory is an error that names the argument.

The calls are made in processes of their own, which a kernel that reads outside may end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lt_kernels.ops import extension_status

HERE = Path(__file__).resolve().parent
SCRIPT = """
import json, sys
import torch
from calls import NAMESPACE, misplaced, operators, right, schema, wrong
from lt_kernels.ops import use_kernels

wing, found, count = sys.argv[1], [], 0
with use_kernels(wing):
    for operator in operators():
        function = getattr(NAMESPACE, operator)
        function(*right(operator))
        for call in (*wrong(operator), *(misplaced(operator) if wing != "triton" else ())):
            print(operator, call.name, call.how, file=sys.stderr, flush=True)
            count += 1
            try:
                function(*call.arguments)
                found.append([operator, call.name, call.how, "taken"])
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                text = str(error)
                if not any(name in text for name in (*schema(operator), "device")) or "INTERNAL" in text:
                    found.append([operator, call.name, call.how, text[:200]])
print(json.dumps([count, found]))
"""


def judge(wing: str) -> tuple[int, list[list[str]]]:
    """How many wrong calls were made, and those that were not refused in words."""
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", SCRIPT, wing]
    done = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, f"ended by {done.returncode} at {done.stderr[-1500:]}"
    return tuple(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("wing", ["reference", "compiled", "triton"])
def test_every_operator_refuses_what_does_not_fit(wing: str) -> None:
    if wing == "compiled" and not extension_status()[0]:
        pytest.skip("the C++ extension is not built here")
    if wing == "triton":
        pytest.importorskip("triton", reason="Triton's kernels are written in it")
    count, found = judge(wing)
    assert count > 500
    assert found == [], f"{len(found)} of {count}: {found[:12]}"
