"""make gpu-check: checks and measures everything on a GPU, with the torch and the Triton that are there.

    python -m benchmarks.gpu.check                                            everything
    python -m benchmarks.gpu.check --part variants                            then correctness, bench, epoch
    python -m benchmarks.gpu.check --sections correctness,bench --minutes 5
    python -m benchmarks.gpu.check --interpret                                without a GPU, at tiny sizes

Every line is printed when it is known, and the failures last. <device>-check.md, <device>.csv and <device>-profile.txt
in --out hold the same. Each section runs in a process of its own, so that none is lost to another's failure; the exit
status is 0 if nothing failed. Each --part is done within ten minutes, and what does not fit into them is said.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.sections import ALL, COMMANDS, EVERY, INTERPRETED, KINDS, PARTS, SECTIONS, SPLIT, Part

ROOT = Path(__file__).resolve().parents[2]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description="Check and measure on a GPU.")
    parser.add_argument(
        "--sections", help=f"comma-separated: correctness (that is {', '.join(PARTS)}), or any of {list(SECTIONS)}"
    )
    parser.add_argument("--part", choices=COMMANDS, help="the sections of one of four commands, within its time")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of what is written")
    parser.add_argument(
        "--minutes",
        type=float,
        help="for the benchmark and the epoch (8 each) and the variants (3); the last are dropped",
    )
    parser.add_argument("--limit", type=float, default=20.0, help="minutes after which a section is ended")
    parser.add_argument("--seed", type=int, help="of the random inputs (default: another one each time)")
    parser.add_argument("--jobs", type=int, help="sections side by side, of those that time nothing")
    parser.add_argument("--commit", help="to be named in what is written, where there is no git")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the reference kernels, at tiny sizes"
    )
    parser.add_argument("--interpret", action="store_true", help="the GPU's kernels in Triton's interpreter")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # one section, in this process
    chosen = parser.parse_args(argv)
    usual = INTERPRETED if chosen.interpret or chosen.device == "cpu" else ALL
    part = COMMANDS.get(chosen.part, Part(usual, 24 * 60.0, 8.0))
    chosen.all, chosen.minutes = part.minutes, chosen.minutes or part.bench or 3.0
    names = chosen.sections.split(",") if chosen.sections else part.sections
    chosen.sections = expanded(names, split=chosen.device == "cuda" and not (chosen.interpret or chosen.inside))
    chosen.seed = random.SystemRandom().randrange(2**31) if chosen.seed is None else chosen.seed
    if chosen.interpret:
        chosen.device = "cpu"
    return chosen


def expanded(names: Sequence[str], split: bool = False) -> list[str]:
    """The sections of these names; "correctness" is six of them, each of which may be split by dtype."""
    found = [section for name in names for section in (PARTS if name == "correctness" else (name,))]
    for name in found:
        if name not in EVERY:
            raise SystemExit(f"no section {name!r}; there are correctness, {', '.join(SECTIONS)}")
    parts = {part: [name for name in SPLIT if name.startswith(f"{part}-")] for part in PARTS if split}
    return list(dict.fromkeys(one for name in found for one in parts.get(name, [name])))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; 0 if nothing failed, 2 if there is no GPU."""
    chosen = arguments(argv)
    if chosen.interpret:  # before anything imports triton
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device; --interpret runs what can be run without one", file=sys.stderr)
        return 2
    own_tests()
    if chosen.device == "cpu" and not chosen.inside and chosen.out == ROOT / "benchmarks" / "results":
        chosen.out = Path(tempfile.mkdtemp(prefix="gpu-check-"))  # tiny sizes are no results
    if chosen.inside:
        return inside(chosen)
    from benchmarks.gpu import runner

    return runner.run(chosen, EVERY)


def own_tests() -> None:
    """Make `tests` this repository's folder, also where an installed package brought one of that name."""
    import types

    module = types.ModuleType("tests")
    module.__path__ = [str(ROOT / "tests")]
    if "tests" not in sys.modules:
        sys.modules["tests"] = module


def inside(chosen: argparse.Namespace) -> int:
    """One section in this process; its report goes to the standard output."""
    from benchmarks.gpu.report import Broken, Check
    from benchmarks.gpu.runner import machine

    (name,) = chosen.sections
    tiny = chosen.device == "cpu" or name == "smoke"
    around = machine(chosen)
    check = Check(chosen.device, tiny, chosen.seed, chosen.out, chosen.minutes, around, chosen.interpret)
    try:
        with check.guarded(name):
            section(name)(check)
    except Broken as error:
        check.say(f"The rest of this section did not run: {error}.")
    return 1 if check.failures else 0


def section(name: str) -> Callable[..., None]:
    """The function that runs a section; what it needs is imported only then."""
    from benchmarks import epoch
    from benchmarks.gpu import bench, graphs, huge, judge, laws, profile, roofline, variants

    part, _, kind = name.partition("-")
    if part in PARTS:
        return functools.partial(judge.correctness, part=part, wanted=(kind,) if kind else KINDS)
    return {
        "variants": variants.variants,
        "determinism": laws.determinism,
        "graphs": graphs.graphs,
        "compile": graphs.compile,
        "huge": huge.huge,
        "bench": bench.bench,
        "roofline": roofline.roofline,
        "profile": profile.profile,
        "epoch": epoch.epoch,
        "sanitizer": profile.sanitizer,
        "smoke": judge.smoke,
    }[name]


if __name__ == "__main__":
    raise SystemExit(main())
