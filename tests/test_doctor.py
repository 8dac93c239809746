"""lt-kernels doctor, and the building of the extension that it reports on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from lt_kernels import cli, doctor, ops
from lt_kernels.ops.products import choice

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("rows", "margins", "linear", "gram", "columns")


def has_compiler() -> bool:
    """A C++ compiler and Python's headers: what the extension is built with."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return headers.exists() and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def table_of(report: str) -> list[list[str]]:
    """The lines below the heading "operator  device  kernels ...", split at two spaces or more."""
    lines = report.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("operator"))
    return [re.split(r"\s{2,}", line) for line in lines[start + 1 :] if line]


def test_report_names_versions_and_every_room_on_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed == doctor.report() + "\n"
    for fact in ("Python", torch.__version__, "memory budget", "256 MiB", "C++ extension", "GPU", "CPU", "screened"):
        assert fact in printed
    assert f"products       large float32 ones on the CPU by {'oneDNN' if choice()[0] else 'torch.mm'}" in printed
    assert {(line[0], line[1]) for line in table_of(printed)} >= {(room, d) for room in ROOMS for d in ("cpu", "cuda")}


def test_a_reason_stands_wherever_the_reference_serves() -> None:
    for operator, device, kernels, reason in ops.kernels_status():
        if device == "cuda" and not torch.cuda.is_available():
            assert "no CUDA device" in reason
        else:
            assert bool(reason) == kernels.startswith("reference"), (operator, device, kernels, reason)


def test_report_follows_what_operators_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "extension_status", lambda: (False, "", "the moon is full"))
    monkeypatch.setattr(ops, "kernels_status", lambda: [("rows", "cpu", "reference", "the moon is full")])
    assert "not loaded: the moon is full" in doctor.report()
    assert table_of(doctor.report()) == [["rows", "cpu", "reference", "the moon is full"]]
    monkeypatch.setattr(ops, "extension_status", lambda: (True, "avx2", ""))
    assert "loaded, serving with avx2" in doctor.report()


def test_memory_budget_in_the_report() -> None:
    with ops.memory_budget(64 * 2**20):
        assert "64 MiB" in doctor.report()


def test_unknown_argument_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main(["--nonsense"])
    assert "--nonsense" in capsys.readouterr().err


def test_machine_names_device_commit_and_date() -> None:
    facts = doctor.machine()
    assert facts["torch"] == torch.__version__
    assert re.fullmatch(r"unknown|[0-9a-f]{7,}\+?", str(facts["commit"]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(facts["date"]))


def test_the_extension_is_built_where_a_compiler_is() -> None:
    loaded, instruction_set, reason = ops.extension_status()
    if not loaded:
        assert not has_compiler(), f"a compiler is here, so install again: {reason}"
        assert reason
    else:
        assert instruction_set in ("generic", "avx2", "avx512")


def build(folder: Path, sources: dict[str, str]) -> str:
    """Run setup.py in a copy with these C++ sources and return what it printed."""
    shutil.copy(ROOT / "setup.py", folder)
    project = '[project]\nname = "lt-kernels"\nversion = "0"\n[tool.setuptools]\npackages = ["lt_kernels"]\n'
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    (folder / "lt_kernels").mkdir()
    (folder / "csrc").mkdir()
    for name, text in sources.items():
        (folder / "csrc" / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_failing_compiler_costs_the_kernels_not_the_installation(tmp_path: Path) -> None:
    printed = build(tmp_path, {"module.cpp": "#error this does not compile\n"})
    assert printed.count("C++ kernels not built") == 1
    assert list((tmp_path / "lt_kernels").iterdir()) == []


def test_without_sources_the_package_is_pure_python(tmp_path: Path) -> None:
    assert "no sources in csrc" in build(tmp_path, {})


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler and Python's headers")
def test_each_source_gets_the_flags_of_its_instruction_set(tmp_path: Path) -> None:
    sources = {"module.cpp": MODULE, "kernels_generic.cpp": GENERIC}
    if sysconfig.get_platform().endswith("x86_64"):
        sources |= {"kernels_avx2.cpp": AVX2, "kernels_avx512.cpp": AVX512}
    assert "not built" not in build(tmp_path, sources)
    (built,) = (tmp_path / "lt_kernels").iterdir()
    assert ".abi3." in built.name


MODULE = """
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module); }
"""
GENERIC = """
#if defined(__AVX2__) || defined(__FAST_MATH__) || !defined(TORCH_TARGET_VERSION)
#error the generic object must run everywhere
#endif
"""
AVX2 = """
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__) || defined(__AVX512F__)
#error wrong flags
#endif
"""
AVX512 = """
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error wrong flags
#endif
#if defined(__AVX512BF16__)
#error not every processor with AVX-512 has this
#endif
"""
