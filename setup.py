"""Builds lt_kernels._C, one extension module of CPU kernels with one object per instruction set, where torch and a C++
compiler are at hand; without them, or with LT_KERNELS_PURE=1, the package is pure Python and its reference kernels
serve. A compiler that fails is an error."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext, customize_compiler, new_compiler
from setuptools.errors import CompileError, LinkError, PlatformError

try:
    from torch.utils.cpp_extension import include_paths, library_paths
except ImportError:  # an isolated build, or no torch yet
    include_paths = library_paths = None

# What to do where the kernels are wanted, and not built.
WITH_KERNELS = "`pip install --no-build-isolation` where torch, setuptools and a C++ compiler are builds them"
X86 = platform.machine().lower() in ("x86_64", "amd64")
# The stable ABI of torch 2.10 and the limited API of Python 3.10: one binary serves every later torch and Python.
MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030a0000")]
# Loops vectorise under `omp simd` without OpenMP's runtime; errno and floating-point traps would forbid it. No
# -ffast-math: infinities and NaN keep their meaning. No -march=native: a binary runs where it was not built.
COMMON = [
    *("-O3", "-std=c++17", "-g0", "-fvisibility=hidden"),
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12 finds thousands in its own headers of intrinsics
]
# Guarded stacks, checked copies, and tables that are read-only once loaded, which only the linkers of Linux know.
LINUX = sys.platform.startswith("linux")
HARDENED = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"] if LINUX else []
LINKED = ["-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack"] if LINUX else []
INSTRUCTION_SETS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",  # compilers default to 256 bits even where 512 are allowed
    ],
}


def instruction_set(source: str) -> str:
    """The last word of the file's name: csrc/kernels_avx2.cpp -> avx2; any other word means no extra flags."""
    return os.path.splitext(os.path.basename(source))[0].rpartition("_")[2]


class BuildKernels(build_ext):
    """Compiles each source with the flags of its instruction set."""

    def build_extension(self, ext: Extension) -> None:
        self.force = True  # the objects below are always new
        try:
            ext.extra_objects = self.compile_objects(ext)
            ext.sources = []  # nothing is left for the base class but to link
            super().build_extension(ext)
        except (CompileError, LinkError) as error:  # what the compiler said stands above
            way = "set LT_KERNELS_PURE=1 to build the package without them: slower, on its reference kernels"
            raise CompileError(f"the C++ kernels of lt_kernels do not build: {error}; {way}") from error

    def compile_objects(self, ext: Extension) -> list[str]:
        """One object per source, as many at a time as there are cores."""

        def compile_one(source: str) -> list[str]:
            flags = COMMON + HARDENED + INSTRUCTION_SETS.get(instruction_set(source), [])
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                include_dirs=ext.include_dirs,
                extra_postargs=flags,
                depends=ext.depends,
            )

        # Of an inline function that several objects hold, the linker keeps the first: it must be the one that every
        # machine can run, so the generic objects come before those with instructions of their own.
        generic_first = sorted(ext.sources, key=lambda source: instruction_set(source) in INSTRUCTION_SETS)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [obj for objects in pool.map(compile_one, generic_first) for obj in objects]


def compiler() -> str:
    """The C++ compiler that setuptools would call, "" where there is none."""
    found = new_compiler()
    customize_compiler(found)
    if found.compiler_type == "msvc":
        try:
            found.initialize()
        except PlatformError:
            return ""
        return "cl"
    words = getattr(found, "compiler_so_cxx", None) or found.compiler_so
    return next(iter(filter(shutil.which, words[:1])), "")


def why_pure() -> str:
    """Why the package is built without kernels; "" where it is built with them."""
    pure = os.environ.get("LT_KERNELS_PURE", "")
    if pure not in ("", "0", "1"):
        raise SystemExit(f"LT_KERNELS_PURE must be 0 or 1, got {pure!r}")
    if pure == "1":
        return "LT_KERNELS_PURE=1"
    if include_paths is None:
        return "no torch at build time"
    if not glob("csrc/*.cpp"):
        return "no sources in csrc"
    return "" if compiler() else "no C++ compiler"


def extensions() -> list[Extension]:
    """lt_kernels._C, or nothing where it is not wanted or cannot be built."""
    reason = why_pure()
    if reason or include_paths is None or library_paths is None:
        way = "" if reason == "LT_KERNELS_PURE=1" else f"; {WITH_KERNELS}"
        print(f"lt_kernels: C++ kernels not built ({reason}): the reference kernels serve, in plain torch{way}")
        return []
    sources = sorted(glob("csrc/*.cpp"))
    if not X86:
        sources = [source for source in sources if instruction_set(source) not in INSTRUCTION_SETS]
    return [
        Extension(
            "lt_kernels._C",
            sources,
            include_dirs=["csrc", *include_paths()],
            library_dirs=library_paths(),
            libraries=["c10", "torch", "torch_cpu"],
            define_macros=MACROS if X86 else [*MACROS, ("LT_GENERIC_ONLY", "1")],
            extra_link_args=LINKED,
            depends=sorted(glob("csrc/*.h")),
            language="c++",
            py_limited_api=True,
        )
    ]


built = extensions()
setup(
    ext_modules=built,
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if built else {},
)
