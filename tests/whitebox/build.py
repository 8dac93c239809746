"""Builds the module that shows the kernels' internals to the tests, once for all workers, outside of the sources."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WIDTHS = {"generic": 16, "avx2": 32, "avx512": 64}


class CannotBuildError(Exception):
    """What is missing on this machine."""


def flags() -> tuple[list[str], dict[str, list[str]]]:
    """COMMON and INSTRUCTION_SETS of setup.py, which is read and not run."""
    space: dict[str, Any] = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("COMMON", "INSTRUCTION_SETS"):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), space)
    return space["COMMON"], {"generic": [], **space["INSTRUCTION_SETS"]}


def tools() -> tuple[str, str]:
    """A C++ compiler and ninja."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not compiler:
        raise CannotBuildError("no C++ compiler")
    beside = Path(sys.executable).with_name("ninja")  # of the environment, which need not be active
    ninja = str(beside) if beside.exists() else shutil.which("ninja")
    if not ninja:
        raise CannotBuildError("no ninja")
    return compiler, ninja


def includes() -> list[str]:
    """Where the headers are: ours, torch's (a header without a library), pybind11's and Python's."""
    try:
        import pybind11
    except ImportError:
        raise CannotBuildError("no pybind11") from None
    import torch

    system = [Path(torch.__file__).parent / "include", pybind11.get_include(), sysconfig.get_paths()["include"]]
    if not (Path(system[-1]) / "Python.h").exists():
        raise CannotBuildError("no headers of Python")
    return [f"-I{ROOT / 'csrc'}", f"-I{HERE}", *(f"-isystem {path}" for path in system)]


def plan(compiler: str, library: Path) -> str:
    """build.ninja: one object per instruction set, the generic one first in the link as in setup.py."""
    common, sets = flags()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        sets = {"generic": []}
        common = [*common, "-DLT_GENERIC_ONLY"]
    shared = " ".join([*common, "-fPIC", *includes()])
    lines = [
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d {shared} $extra -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = {compiler} -shared $in -o $out"
        + (" -undefined dynamic_lookup" if sys.platform == "darwin" else ""),
        f"build module.o: compile {HERE / 'module.cpp'}",
    ]
    for name, own in sets.items():
        lines += [f"build {name}.o: compile {HERE / 'isa.cpp'}"]
        lines += ["  extra = " + " ".join([f"-DLT_ISA={name}", f"-DLT_BYTES={WIDTHS[name]}", *own])]
    objects = " ".join(f"{name}.o" for name in sets)
    return "\n".join([*lines, f"build {library.name}: link module.o {objects}", ""])


def build(folder: Path) -> ModuleType:
    """The module, built in `folder` where it is not yet; of several processes one builds and the others wait."""
    try:
        import fcntl
    except ImportError:
        raise CannotBuildError("no POSIX file locks") from None
    compiler, ninja = tools()
    library = folder / f"lt_whitebox{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(plan(compiler, library), encoding="utf-8")
        done = subprocess.run([ninja], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ninja failed:\n{done.stdout}{done.stderr}")
    spec = importlib.util.spec_from_file_location("lt_whitebox", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def for_tests(config: Any, temporary: Any) -> ModuleType:
    """The module in pytest's cache folder (without a cache, the run's temporary one), or the test is skipped."""
    cache = getattr(config, "cache", None)
    folder = temporary.getbasetemp().parent / "whitebox" if cache is None else Path(cache.mkdir("whitebox"))
    folder.mkdir(exist_ok=True)
    try:
        return build(folder)
    except CannotBuildError as missing:
        pytest.skip(f"the kernels' internals cannot be built here: {missing}")
