"""What a build makes: kernels, or a package that is pure Python by its name and its content, or an error."""

from __future__ import annotations

import shutil
import sysconfig

import pytest
from builds.wheels import MODULE, ROOT, build, copy, has_compiler

PURE = "lt_kernels-0-py3-none-any.whl"
pytestmark = pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler and Python's headers")


def is_pure(built) -> bool:
    assert built.status == 0, built.said
    assert built.wheel == PURE
    return not [name for name in built.names if name.endswith((".so", ".pyd", ".dylib"))]


def test_a_wheel_with_kernels_is_tagged_for_the_platform(tmp_path):
    copy(tmp_path, {"module.cpp": MODULE, "kernels_generic.cpp": GENERIC, **BY_MACHINE})
    built = build(tmp_path)
    assert built.status == 0, built.said
    assert built.wheel.startswith("lt_kernels-0-cp310-abi3-")
    assert [name for name in built.names if name.startswith("lt_kernels/_C.")], built.names
    assert "not built" not in built.said


def test_a_compiler_that_fails_fails_the_build_in_its_words(tmp_path):
    copy(tmp_path, {"module.cpp": "#error the moon is full\n"})
    built = build(tmp_path)
    assert built.status != 0
    assert built.wheel == ""
    for words in ("the moon is full", "LT_KERNELS_PURE=1"):
        assert words in built.said


def test_a_compiler_that_breaks_down_fails_the_build(tmp_path):
    copy(tmp_path, {"module.cpp": MODULE})
    built = build(tmp_path, CXX="/bin/false", CC="/bin/false")
    assert built.status != 0
    assert built.wheel == ""
    assert "/bin/false" in built.said


def test_a_linker_that_fails_fails_the_build(tmp_path):
    copy(tmp_path, {"module.cpp": MODULE})
    built = build(tmp_path, LDFLAGS="-l_there_is_no_such_library")
    assert built.status != 0
    assert built.wheel == ""
    assert "_there_is_no_such_library" in built.said


def test_pure_python_on_demand_whatever_the_compiler(tmp_path):
    copy(tmp_path, {"module.cpp": "#error the moon is full\n"})
    built = build(tmp_path, LT_KERNELS_PURE="1")
    assert is_pure(built)
    assert "LT_KERNELS_PURE=1" in built.said


def test_pure_python_where_there_is_no_compiler(tmp_path):
    copy(tmp_path, {"module.cpp": MODULE})
    built = build(tmp_path, CXX="/there/is/none", CC="/there/is/none")
    assert is_pure(built)
    assert "no C++ compiler" in built.said


def test_pure_python_without_torch_as_in_an_isolated_build(tmp_path):
    copy(tmp_path, {"module.cpp": MODULE})
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')\n", encoding="utf-8")
    built = build(tmp_path)
    assert is_pure(built)
    (line,) = [line for line in built.said.splitlines() if line.startswith("lt_kernels: ")]
    assert "no torch at build time" in line
    assert "`pip install --no-build-isolation` where torch, setuptools and a C++ compiler are builds them" in line


def test_pure_python_without_sources(tmp_path):
    copy(tmp_path, {})
    built = build(tmp_path)
    assert is_pure(built)
    assert "no sources in csrc" in built.said


def test_a_word_that_is_no_answer_is_an_error(tmp_path):
    copy(tmp_path, {"module.cpp": MODULE})
    built = build(tmp_path, LT_KERNELS_PURE="yes")
    assert built.status != 0
    assert "LT_KERNELS_PURE must be 0 or 1, got 'yes'" in built.said


def test_the_package_has_its_figures_and_recipes_with_it(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lt_kernels", tmp_path / "lt_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    built = build(tmp_path, LT_KERNELS_PURE="1")
    assert built.status == 0, built.said
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "lt_kernels").rglob("*.py")}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "lt_kernels" / "recipes").glob("*.yaml")}
    assert len(recipes) > 100
    assert code | recipes | {"lt_kernels/train/published.csv", "lt_kernels/py.typed"} <= set(built.names)


GENERIC = """
#if defined(__AVX2__) || defined(__FAST_MATH__) || !defined(TORCH_TARGET_VERSION)
#error the generic object must run everywhere
#endif
#if defined(__linux__) && (!defined(__SSP_STRONG__) || !defined(_FORTIFY_SOURCE) || _FORTIFY_SOURCE < 2)
#error not hardened
#endif
"""
BY_MACHINE = {
    "kernels_avx2.cpp": """
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__) || defined(__AVX512F__)
#error wrong flags
#endif
""",
    "kernels_avx512.cpp": """
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error wrong flags
#endif
#if defined(__AVX512BF16__)
#error not every processor with AVX-512 has this
#endif
""",
}
if not sysconfig.get_platform().endswith("x86_64"):
    BY_MACHINE = {}
