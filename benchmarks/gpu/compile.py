"""Compiles every GPU kernel ahead of time, without a GPU, and says what came of it: python -m benchmarks.gpu.compile.

What is compiled is what the operators launch at the shapes that count (`benchmarks.gpu.calls`). With --triton 3.6.0 it
is compiled by that version, which pip puts into a folder of its own; --few takes some variants of each kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.gpu import calls, traffic
from benchmarks.gpu.code import Compiled, Job, compiled, jobs
from benchmarks.tables.markdown import markdown, section

TARGETS = (80, 90, 100, 120)
KINDS = ("vocab bfloat16", "odd bfloat16", "inat float32", "float64")  # in the titles of calls
# Of the kernels that multiply, those for every target: where registers are scarce, and where the tile is the largest.
GOALS = (
    "vocab bfloat16",
    "faces bfloat16 cosine",
    "vocab float16 bias and offset held",
    "bfloat16 cosine and offset held",
)
MULTIPLY = ("statistics_kernel", "slab_gradient_kernel")
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "kernels" / "gpu.md"


def results(rooms: Iterable[str], targets: Sequence[int], few: bool, workers: int) -> list[Compiled]:
    """Compile what the rooms launch; with `few`, as much of it as a test has time for."""
    wanted = [job for target in targets for job in jobs(calls.calls(rooms, target // 10), target)]
    wanted, found = fewer(wanted) if few else wanted, []
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:  # this process has no other threads
        for one in pool.map(compiled, wanted, chunksize=2):
            print(*complaints([one]), sep="\n", end="\n" if complaints([one]) else "", file=sys.stderr, flush=True)
            found.append(one)
    return found


def fewer(wanted: list[Job]) -> list[Job]:
    """Of each kernel's variants for sm_90 one of each kind and the last, for every other target one; those of the goals
    for each.
    """
    places: dict[tuple[str, int], list[Job]] = {}
    for job in wanted:
        places.setdefault((job.kernel, job.target), []).append(job)
    kept: list[Job] = []
    for (kernel, target), variants in places.items():
        goals = GOALS if kernel in MULTIPLY else ()
        kinds = [next((job for job in variants if kind in job.title), None) for kind in (*KINDS, *goals)]
        some = [job for job in (*kinds, variants[-1]) if job is not None]
        kept += {id(job): job for job in (some if target == 90 or goals else some[:1])}.values()
    return kept


def complaints(found: Sequence[Compiled]) -> list[str]:
    """What is wrong: kernels that do not compile, that keep in memory what does not fit into the registers, or whose
    matrix instructions wait for each other.
    """
    said: list[str] = []
    for one in found:
        wrong = [one.problem, f"{one.spilled} bytes spilled" if one.spilled else "", *one.warnings]
        said += [f"{one.kernel} for sm_{one.target} ({one.title}): {words}" for words in wrong if words]
    return said


def codes(one: Compiled) -> str:
    """The assembler's warnings by their numbers."""
    return " ".join(sorted({words[:5] for words in one.warnings}))


HEADER = ("kernel", "variants", "registers", "spilled", "warnings", "shared memory, KiB", "widest read", "widest write",
          "products")  # fmt: skip


def table(found: Sequence[Compiled]) -> str:
    """A row for each kernel: of all its variants the worst registers and memory, the widest accesses."""
    kernels = dict.fromkeys(one.kernel for one in found)
    return markdown(HEADER, [line([one for one in found if one.kernel == kernel]) for kernel in kernels])


def line(found: Sequence[Compiled]) -> list[str]:
    """The row of one kernel; a number for each target, or one number where all are the same."""
    by_target = [[one for one in found if one.target == target] for target in sorted({one.target for one in found})]

    def each(value: Callable[[Compiled], Any], most: Callable[..., Any] = max) -> str:
        values = [str(most(map(value, part))) for part in by_target]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    return [
        f"`{found[0].kernel}`",
        str(max(map(len, by_target))),
        each(lambda one: one.registers),
        each(lambda one: one.spilled),
        each(lambda one: codes(one) or "-"),
        each(lambda one: -(-one.shared // 1024)),
        each(lambda one: one.reads[0][0] if one.reads else 0),
        each(lambda one: one.writes[0][0] if one.writes else 0),
        each(lambda one: one.products or "-"),
    ]


VERSIONS = ("Triton", "variants", "do not compile", "spill", "bytes spilled", "warnings", "kernels concerned")


def by_version(version: str, options: Sequence[str]) -> list[Compiled]:
    """What another version of Triton makes of the same, in a process that finds that one first."""
    folder = ROOT / "build" / f"triton-{version}"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, f"triton=={version}"], check=True)
    with tempfile.TemporaryDirectory() as cache:
        found, paths = Path(cache) / "found", os.pathsep.join([str(folder), str(ROOT)])
        command = [sys.executable, "-m", "benchmarks.gpu.compile", *options, "--json", str(found)]
        subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": cache}, cwd=ROOT, check=False
        )
        return [Compiled(**one) for one in json.loads(found.read_text(encoding="utf-8"))]


def version_line(version: str, found: Sequence[Compiled]) -> list[str]:
    """The row of a version: how many variants are wrong, and in which way."""
    broken, spilled = ([one for one in found if getattr(one, name)] for name in ("problem", "spilled"))
    serial = [one for one in found if one.warnings]
    kernels = sorted({f"`{one.kernel}`" for one in (*broken, *spilled, *serial)})
    most = max((one.spilled for one in found), default=0)
    return [version, *map(str, (len(found), len(broken), len(spilled), most, len(serial))), ", ".join(kernels) or "-"]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.compile", description="Compile the GPU kernels.")
    parser.add_argument("--room", action="append", choices=calls.ROOMS, help="only this room (may be repeated)")
    parser.add_argument("--target", action="append", type=int, help="only this compute capability, such as 90")
    parser.add_argument("--few", action="store_true", help="some variants of each kernel only")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--json", type=Path, help="write what was found of each variant there")
    parser.add_argument("--triton", action="append", help="compile by this version instead (may be repeated)")
    parser.add_argument("--read", type=Path, action="append", help="what --json wrote before (may be repeated)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/kernels/gpu.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print the tables; 1 if a kernel does not compile, spills, or has its matrix instructions serialised."""
    chosen = arguments(argv)
    if chosen.triton:
        passed = ["--workers", str(chosen.workers), *(["--few"] if chosen.few else [])]
        passed += [f"--room={room}" for room in chosen.room or ()] + [f"--target={one}" for one in chosen.target or ()]
        every = {version: by_version(version, passed) for version in chosen.triton}
        found = [one for some in every.values() for one in some]
        tables = {"gpu-versions": markdown(VERSIONS, [version_line(*place) for place in every.items()])}
    else:
        found = [Compiled(**one) for path in chosen.read or () for one in json.loads(path.read_text(encoding="utf-8"))]
        found += results(chosen.room or calls.ROOMS, chosen.target or TARGETS, chosen.few, chosen.workers)
        tables = {"gpu-compile": table(found), "gpu-traffic": traffic.table(calls.calls(calls.ROOMS))}
    print("\n\n".join(tables.values()))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    if chosen.write:
        write(tables)
    wrong = complaints(found)
    print("\n".join(wrong))
    return 1 if wrong else 0


def write(tables: dict[str, str]) -> None:
    """Put tables into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, made in tables.items():
        text = section(text, name, made)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # triton reads it when it is imported, which is later
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TRITON_CACHE_DIR", folder)
        sys.exit(main())
