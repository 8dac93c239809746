"""Builds a copy of the package with a compiler's sanitizers and runs a part of the tests in it (docs/sanitizers.md).

python tests/sanitize [address | thread] [files and options for pytest]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("lt_kernels", "csrc", "tests", "benchmarks", "docs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# vptr asks for the type information of torch's classes, which torch does not give away.
FLAGS = "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
TESTS = (
    *("tests/ops/test_door.py", "tests/fuzz", "tests/functional/test_edges.py", "tests/ops/test_gram.py"),
    *("tests/ops/test_columns.py", "tests/ops/test_direct_values.py"),
    *("tests/whitebox/test_whitebox_rows.py", "tests/whitebox/test_whitebox_gram.py"),
)


def copy(folder: Path) -> None:
    """The tree without what was built."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)
    # With the checks in it, code that is optimised as usual takes several times as long to compile.
    setup = folder / "setup.py"
    setup.write_text(setup.read_text(encoding="utf-8").replace('"-O3"', '"-O1"'), encoding="utf-8")


def library(name: str) -> str:
    """Where the compiler has a library of its own."""
    compiler = os.environ.get("CXX", "g++")
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def environment(folder: Path) -> dict[str, str]:
    """The variables under which the sanitizers' runtime is the first library of a Python that does not know of it."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        # Python and torch keep memory until the end; the tests ask for more than there is.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LT_KERNELS_REQUIRE_EXTENSION": "1",
        "OMP_NUM_THREADS": "2",
    }


def main(arguments: list[str]) -> int:
    """Build, then run pytest; its exit status."""
    folder = ROOT / "build" / "sanitize"
    folder.mkdir(parents=True, exist_ok=True)
    copy(folder)
    build = {**os.environ, "CFLAGS": FLAGS, "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=build, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", *(arguments or TESTS)]
    return subprocess.run(command, cwd=folder, env=environment(folder), check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
