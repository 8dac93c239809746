"""What `make sanitize` prepares: a copy of its own, and a runtime that is there before Python."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("sanitize_main", HERE / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_copy_has_sources_and_no_library(tool, tmp_path):
    tool.copy(tmp_path)
    assert (tmp_path / "csrc" / "rows.cpp").read_bytes() == (ROOT / "csrc" / "rows.cpp").read_bytes()
    assert (tmp_path / "setup.py").exists()
    assert list(tmp_path.rglob("*.so")) == []
    assert [name for name in tool.TESTS if not (tmp_path / name).exists()] == []


@pytest.mark.skipif(not shutil.which("g++"), reason="GCC brings the sanitizers' runtime")
def test_the_runtime_is_loaded_first(tool, tmp_path):
    libraries = tool.environment(tmp_path)["LD_PRELOAD"].split()
    assert "asan" in libraries[0]
    source = tmp_path / "one.cpp"
    source.write_text("int main(int count, char**) { int all[1] = {0}; return all[count - 1]; }")
    command = ["g++", *tool.FLAGS.split(), "-o", str(tmp_path / "one"), str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this GCC has no sanitizers")
    assert all(Path(name).is_file() for name in libraries)
    run = [str(tmp_path / "one")]
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0
    outside = subprocess.run([*run, "one argument too many"], capture_output=True, text=True, check=False)
    assert outside.returncode != 0
    assert "runtime error: index 1 out of bounds" in outside.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
def test_the_target_names_the_tool():
    done = subprocess.run(["make", "-n", "sanitize", "ARGS=-x"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tests/sanitize -x" in done.stdout
