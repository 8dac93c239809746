"""The source distribution has what its own tests, benchmarks and documents need."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lt_kernels", "csrc", "tests", "benchmarks", "tools", "docs", "examples", ".ci")
MADE = ("*.so", "*.pyc", "__pycache__", "*.egg-info")


def test_the_source_distribution_has_every_file(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(*MADE))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # a file in a linked worktree
            shutil.copy(path, tree)
    there = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("lt_kernels-*.tar.gz")
    with tarfile.open(archive) as members:
        packed = {name.partition("/")[2] for name in members.getnames()}
    assert len(there) > 500
    assert there - packed == set()
