"""The extension that is loaded: hardened, demanded where it must be, on the instruction set that is asked for."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from lt_kernels import ops

BUILT = pytest.mark.skipif(not ops.extension_status()[0], reason="the C++ extension is not built here")
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, one process for each try being slow")
WITHOUT = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "lt_kernels._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, without variables of ours."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("LT_KERNELS")}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=others, capture_output=True, text=True, check=False)


def readelf(*what: str) -> str:
    library = importlib.import_module("lt_kernels._C").__file__
    return subprocess.run(["readelf", "-W", *what, library], capture_output=True, text=True, check=True).stdout


@BUILT
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("readelf"), reason="needs Linux's readelf")
def test_the_extension_is_hardened():
    """Full RELRO, no code on the stack, no text that is written to, guarded stacks."""
    dynamic, segments, symbols = readelf("--dynamic"), readelf("--segments"), readelf("--dyn-syms")
    assert "BIND_NOW" in dynamic
    assert "TEXTREL" not in dynamic
    assert "GNU_RELRO" in segments
    (stack,) = re.findall(r"GNU_STACK(?:\s+0x[0-9a-f]+)+\s+([RWE]+)", segments)
    assert "E" not in stack
    assert "__stack_chk_fail" in symbols


# Each line of `settings` is imported under in a fork, as torch, which takes a while to import, is there already.
IMPORTS = """
import os, sys, torch

for setting in sys.argv[1:]:
    if os.fork() == 0:
        os.environ.update(part.split("=") for part in setting.split())
        try:
            import lt_kernels
            print("imported", lt_kernels.ops.instruction_set(), flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    os.wait()
"""


def imported(script: str, *settings: str) -> list[str]:
    """What an import says under each of these settings of variables."""
    done = run(script + IMPORTS, *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@FORKS
def test_a_missing_extension_is_an_error_where_it_is_demanded():
    required, wrong, chosen, optional = imported(
        WITHOUT,
        "LT_KERNELS_REQUIRE_EXTENSION=1",
        "LT_KERNELS_REQUIRE_EXTENSION=yes",
        "LT_KERNELS_CPU=generic",
        "LT_KERNELS_REQUIRE_EXTENSION=0",
    )
    said = "ImportError LT_KERNELS_{} asks for C++ kernels, but the C++ extension was not built: "
    assert required.startswith(said.format("REQUIRE_EXTENSION"))
    assert "`pip install --no-build-isolation` where torch, setuptools and a C++ compiler are builds it" in required
    assert chosen.startswith(said.format("CPU"))
    assert wrong == "ValueError LT_KERNELS_REQUIRE_EXTENSION must be 0 or 1, got 'yes'"
    assert optional == "imported none"


@BUILT
@FORKS
def test_the_environment_chooses_the_instruction_set():
    wrong, generic, required = imported(
        "", "LT_KERNELS_CPU=sse9", "LT_KERNELS_CPU=generic", "LT_KERNELS_REQUIRE_EXTENSION=1"
    )
    assert wrong == "ValueError LT_KERNELS_CPU must be one of generic, avx2, avx512, got 'sse9'"
    assert generic == "imported generic"
    assert required.split()[1] in ("generic", "avx2", "avx512")


ONCE = """
import os, warnings
import torch
from lt_kernels import contrastive, functional, losses, regularizers

rows, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
weight, counts = torch.randn(3, 4), [5, 3, 1]
ways = {
    "loss": lambda: losses.BalancedSoftmaxLoss(counts)(rows[:, :3], classes),
    "repulsion": lambda: functional.logit_weight_repulsion(weight),
    "listed repulsion": lambda: regularizers.LogitWeightRepulsion(threshold=0.9)(weight),
    "lade": lambda: functional.lade_regularizer(rows[:, :3], classes, counts),
    "LADELoss": lambda: losses.LADELoss(counts)(rows[:, :3], classes),
    "contrastive": lambda: contrastive.balanced_contrastive(rows, weight, classes),
}
for name, way in ways.items():
    if os.fork() == 0:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            way(), way()
        print(name, sum("the reference kernels serve" in str(one.message) for one in said), sep=":", flush=True)
        os._exit(0)
    os.wait()
"""


@FORKS
def test_whatever_is_called_first_says_once_that_the_reference_serves():
    done = run(WITHOUT + ONCE)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(":") for line in done.stdout.splitlines())
    assert len(found) == 6, done.stderr
    assert set(found.values()) == {"1"}, found
