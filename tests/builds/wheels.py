"""Wheels of small copies of the package: setup.py as it is, with little to compile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROJECT = '[project]\nname = "lt-kernels"\nversion = "0"\n[tool.setuptools]\npackages = ["lt_kernels"]\n'
MODULE = """
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module); }
"""


class Built(NamedTuple):
    """What became of a build: its exit status, all that it said, the wheel's file name and what is in the wheel."""

    status: int
    said: str
    wheel: str
    names: list[str]


def has_compiler() -> bool:
    """A C++ compiler and Python's headers: what the extension is built with."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return headers.exists() and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def copy(folder: Path, sources: dict[str, str]) -> None:
    """setup.py, with these C++ sources and a package of one file."""
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (folder / "lt_kernels").mkdir()
    (folder / "lt_kernels" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "csrc").mkdir()
    for name, text in sources.items():
        (folder / "csrc" / name).write_text(text, encoding="utf-8")


def build(folder: Path, **environment: str) -> Built:
    """The wheel of a copy, built with these environment variables, and without those that were set before."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LT_KERNELS")}
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "bdist_wheel", "-d", "wheels"]
    done = subprocess.run(command, cwd=folder, env={**ours, **environment}, capture_output=True, text=True, check=False)
    found = list((folder / "wheels").glob("*.whl")) if (folder / "wheels").exists() else []
    names = [name for wheel in found for name in zipfile.ZipFile(wheel).namelist()]
    return Built(done.returncode, done.stdout + done.stderr, "".join(wheel.name for wheel in found), names)
