"""Which kernels a step launches and how long they take; and what a memory checker finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import results
from benchmarks.cases import Case, cases
from benchmarks.gpu.report import Check
from benchmarks.problems import problem
from benchmarks.providers import providers
from benchmarks.run import title

STEPS = 5
PROFILED = (
    ("linear_cross_entropy", "inat"),
    ("cosine_margin_cross_entropy", "inat"),
    ("cosine_margin_cross_entropy", "faces"),
    ("linear_cross_entropy", "vocab"),
    ("logit_weight_repulsion", "lwr-inat"),
    ("logit_weight_repulsion", "lwr-inat-sparse"),
    ("logit_weight_repulsion", "lwr-100k"),
    ("logit_weight_repulsion", "lwr-100k-sparse"),
    ("offset_cross_entropy", "vocab-4096"),
    ("lade_regularizer", "inat"),
)
# Minutes for each tool; small scenes take seconds without it and some hundred times as long with it.
PATIENCE = 4.0
TOOLS = ("memcheck", "racecheck")


def profile(check: Check) -> None:
    """The kernels of the cases that the goals are about: all in <device>-profile.txt, the longest in the report."""
    if check.device != "cuda":
        check.say("Needs a CUDA device; not run.")
        return
    path = results.path_of(check.around, check.out)
    path = path.with_name(f"{path.stem}-profile.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    check.table("case", "kernels a step", "ms a step on the device", "longest")
    known: dict[tuple[str, str], Case] = {}
    for case in cases("cuda"):
        known.setdefault((case.operator, case.name), case)  # bfloat16 comes first
    for place in PROFILED:
        with check.guarded(f"profile, {place}"):
            lines, cells = kernels(known[place])
            with path.open("a", encoding="utf-8") as file:
                file.write("\n".join([title(known[place]), *lines, "", ""]))
            check.row(title(known[place]), *cells)
        torch.cuda.empty_cache()


def kernels(case: Case) -> tuple[list[str], list[str]]:
    """The kernels of a step, longest first, as text; and the cells of the report."""
    (ours,) = providers(problem(case, "cuda"), ["ours"])
    run: Callable[[], Any] = lambda: ours.backward(ours.forward())  # noqa: E731 (no more than a name for it)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=both) as watched:
        for _ in range(STEPS):
            run()
        torch.cuda.synchronize()
    on_device = [event for event in watched.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    spent = sorted(on_device, key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in spent) / STEPS / 1e3
    lines = [f"{'ms a step':>12} {'a step':>8} {'us each':>10}  kernel"]
    for event in spent:
        spent_on, count = event.self_device_time_total, event.count
        lines.append(f"{spent_on / STEPS / 1e3:12.4f} {count / STEPS:8.1f} {spent_on / count:10.2f}  {event.key}")
    longest = ", ".join(f"{event.key[:40]} {event.self_device_time_total / STEPS / 1e3:.3g}" for event in spent[:3])
    number = sum(event.count for event in spent) / STEPS
    return lines, [f"{number:g}", f"{total:.4g}", longest.replace("|", "/")]


def sanitizer(check: Check) -> None:
    """compute-sanitizer over small scenes, in a process of its own for each tool."""
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if found is None or check.device != "cuda":
        check.say("Absent: compute-sanitizer is not on the path." if found is None else "Needs a CUDA device; not run.")
        return
    for tool in TOOLS:
        with check.guarded(f"sanitizer, {tool}"):
            _checked(found, tool, check)


def _checked(program: str, tool: str, check: Check) -> None:
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.check"]
    command += ["--inside", "--sections", "smoke", "--seed", str(check.seed)]
    # without the cache of the allocator each tensor has bounds that the tool knows
    options: dict[str, Any] = {"env": os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "cwd": results.ROOT}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * PATIENCE, check=False, **options)
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        check.say(f"{tool}: not done in {PATIENCE:g} minutes; until then: {'; '.join(said.splitlines()[-4:])}  ")
        return
    lines = [line.strip("= ") for line in (done.stdout + done.stderr).splitlines()]
    summary = [line for line in lines if "SUMMARY" in line or line.startswith("ran ")]
    check.say(f"{tool}: {'; '.join(summary) or 'no summary'}  ")
    if done.returncode:
        check.say("```\n" + "\n".join(lines[-60:]) + "\n```")
        check.fail(f"sanitizer, {tool}: status {done.returncode}")
