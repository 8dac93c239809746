"""Runs the sections of the GPU check, each in a process of its own, and gathers in one file what they say."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from lt_kernels import doctor, ops

HEADING = "## "


def machine(chosen: argparse.Namespace) -> dict[str, Any]:
    """What a measured table has to name; --commit where there is no git."""
    around = dict(doctor.machine(chosen.device))
    if chosen.commit:
        around["commit"] = chosen.commit
    return around


class Report:
    """The Markdown file: a section's text replaces what an earlier run wrote under the same heading."""

    def __init__(self, path: Path, title: str, order: Sequence[str]) -> None:
        self.path, self.title, self.order = path, title, order
        self.texts = parsed(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.lock = threading.Lock()

    def put(self, heading: str, text: str) -> None:
        """Write the section's text so far."""
        with self.lock:
            self.texts[heading] = text.strip()
            known = [
                *(name for name in self.order if name in self.texts),
                *(n for n in self.texts if n not in self.order),
            ]
            body = "\n\n".join(f"{HEADING}{name}\n\n{self.texts[name]}" for name in known)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(f"# {self.title}\n\n{body}\n", encoding="utf-8")


def parsed(text: str) -> dict[str, str]:
    """The sections of a report by heading."""
    parts = re.split(rf"^{HEADING}(.+)\n", text, flags=re.MULTILINE)[1:]
    return {heading: body.strip() for heading, body in zip(parts[::2], parts[1::2])}


def run(chosen: argparse.Namespace, sections: Mapping[str, Any]) -> int:
    """All chosen sections: those that time nothing side by side, then the others one by one."""
    around, chosen.ends = machine(chosen), time.monotonic() + 60 * chosen.all
    path = results.path_of(around, chosen.out).with_name(results.path_of(around, chosen.out).stem + "-check.md")
    report = Report(path, f"GPU check: {around['device']}", ["Failures", *(s.title for s in sections.values())])
    print("\n".join(preface(around, chosen)), flush=True)
    together = [name for name in chosen.sections if not sections[name].alone]
    alone = [name for name in chosen.sections if sections[name].alone]
    failed: dict[str, list[str]] = {}
    with ThreadPoolExecutor(jobs(chosen)) as pool:
        kept = [(name, pool.submit(one, name, sections[name].title, chosen, report, False)) for name in together]
        for name, future in kept:
            failed[name] = future.result()
    for name in alone:
        failed[name] = one(name, sections[name].title, chosen, report, True)
    lines = [f"- {name}: {text}" for name, texts in failed.items() for text in texts]
    report.put("Failures", "\n".join(lines) or f"None in {', '.join(failed)}.")
    print(f"\n{len(lines)} failures in {len(failed)} sections; the report is {path}", *lines, sep="\n", flush=True)
    return 1 if lines else 0


def preface(around: Mapping[str, Any], chosen: argparse.Namespace) -> list[str]:
    """What runs where."""
    facts = ", ".join(f"{name} {value}" for name, value in around.items())
    loaded, _, reason = ops.extension_status()
    return [facts, f"seed {chosen.seed}", *([] if loaded else [f"warning: {reason}; nothing here needs it on a GPU"])]


def jobs(chosen: argparse.Namespace) -> int:
    """How many sections at a time: they mostly compile kernels, on the host."""
    return chosen.jobs or (max(1, min(10, len(os.sched_getaffinity(0)) - 2)) if chosen.device == "cuda" else 2)


def one(name: str, title: str, chosen: argparse.Namespace, report: Report, live: bool) -> list[str]:
    """Run a section and return its failures. Its lines are printed as they come, with its name before them unless it
    runs `live`, that is alone.
    """
    lines = [f"torch {torch.__version__}, commit {report_commit(chosen)}, seed {chosen.seed}", ""]
    print(f"\n{HEADING}{title}" if live else f"[{name}] begins", flush=True)
    seconds = min(60 * chosen.limit, chosen.ends - time.monotonic())
    if seconds <= 0:
        return ["did not run, because the time of this part was over"]
    late = threading.Event()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "bufsize": 1}
    with subprocess.Popen(command(name, chosen), cwd=results.ROOT, start_new_session=True, **pipes) as process:
        timer = threading.Timer(seconds, ended, (process, late))
        timer.start()
        for line in process.stdout or ():
            lines.append(line.rstrip())
            report.put(title, "\n".join(lines))
            print(lines[-1] if live else f"[{name}] {lines[-1]}", flush=True)
        code = process.wait()
        timer.cancel()
    failures = [line.removeprefix("**FAIL** ") for line in lines if line.startswith("**FAIL** ")]
    if late.is_set():
        failures.append(f"ended after its {seconds / 60:.2g} minutes: {lines[-1]}")
    elif code not in (0, 1) or (code and not failures):
        failures.append(f"ended with status {code}: {lines[-1]}")
    return failures


def ended(process: subprocess.Popen[str], late: threading.Event) -> None:
    """End a section and what it started, when its time is over."""
    late.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def report_commit(chosen: argparse.Namespace) -> str:
    """The commit that a section's heading names."""
    return chosen.commit or doctor.commit()


def command(name: str, chosen: argparse.Namespace) -> list[str]:
    """The command line of one section."""
    words = [sys.executable, "-m", "benchmarks.gpu.check", "--inside", "--sections", name, "--seed", str(chosen.seed)]
    words += ["--out", str(chosen.out), "--minutes", str(chosen.minutes)]
    words += ["--interpret"] if chosen.interpret else ["--device", chosen.device]
    return [*words, *(["--commit", chosen.commit] if chosen.commit else [])]
