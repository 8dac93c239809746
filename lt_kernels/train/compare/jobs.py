"""The runs of a comparison, several methods over several seeds: planned, trained and collected."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lt_kernels.system.interrupts import Interrupted
from lt_kernels.train.compare.workers import gpus, run_all
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError, RunFailed
from lt_kernels.train.files.folder import prepare_run, read_result
from lt_kernels.train.methods.variants import config_of
from lt_kernels.train.ranks.launch import launched

SEEDS = 10_000


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a comparison; `name` is the method's or the variant's."""

    config: TrainConfig
    folder: Path
    name: str

    def __str__(self) -> str:
        return f"{self.name}, seed {self.config.seed}"


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """How many runs a comparison does at a time: one a GPU, or without GPUs one a core."""
    return len(gpus()) or available_cores()


def plan(settings: Mapping[str, Any], methods: Sequence[str], seeds: int, folder: Path, threads: int) -> list[Job]:
    """The runs, seed by seed, so that a comparison cut short has whole rounds; every config is checked before
    anything runs.

    Errors: ConfigError naming the method, seed or option that cannot be used.
    """
    if not methods or len(set(methods)) != len(methods):
        raise ConfigError(f"--methods must name at least one method, each once, got {','.join(methods)!r}")
    if not 1 <= seeds <= SEEDS:
        allowed = "at least 1" if seeds < 1 else f"at most {SEEDS}"
        raise ConfigError(f"--seeds must be {allowed}, got {seeds}")
    if launched():
        raise ConfigError("a comparison starts its processes itself: run it without torchrun")
    if settings.get("method_options"):
        raise ConfigError(
            f"method_options must be given as methods.NAME in a comparison, got {settings['method_options']!r}"
        )
    jobs = []
    for seed in range(seeds):
        for method in methods:
            config = config_of({"threads": threads, **settings}, method, seed)
            if max(config.devices, config.nodes) > 1:
                key = "devices" if config.devices > 1 else "nodes"
                raise ConfigError(
                    f"{key} must be 0 or 1 in a comparison, whose runs have a process each, got {getattr(config, key)}"
                )
            jobs.append(Job(config, folder / method / f"seed-{seed}", method))
    return jobs


def work(job: Job) -> dict[str, Any]:
    """One run, resumed where its folder holds a part of it; imports the trainer, once a process."""
    from lt_kernels.train.run.training import train_run

    result = train_run(job.config, job.folder, resume=True)
    gc.collect()  # a trainer and its parts know each other; else the next run's data would be there beside this one's
    return result


def run_jobs(jobs: Sequence[Job], workers: int) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """Do the runs that are not done, `workers` at a time in processes of their own, and yield each when its result is
    there.
    """
    waiting = []
    for job in jobs:
        prepare_run(job.config, job.folder, resume=True)
        result = read_result(job.folder, job.config)
        if result is None:
            waiting.append(job)
        else:
            yield job, result
    if min(workers, len(waiting)) > 1:
        yield from run_all(waiting, workers, work)
        return
    for job in waiting:
        yield job, work(job)


def run_comparison(jobs: Sequence[Job], workers: int, console: Console | None) -> dict[str, list[dict[str, Any]]]:
    """Do all runs, telling `console` of each, and return the results by method, in the order of the seeds."""
    shown = console or Console(quiet=True)
    parts = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    finished: dict[Path, dict[str, Any]] = {}
    bar = Progress(*parts, console=shown, disable=not shown.is_terminal)
    with hinting_runs(jobs, finished), bar, contextlib.closing(run_jobs(jobs, workers)) as runs:
        task = bar.add_task("", total=len(jobs))
        for job, result in runs:
            finished[job.folder] = result
            line = f"{job}: {result['accuracy']['all']:.1f} %"
            bar.update(task, advance=1, description=line)
            if not shown.is_terminal:
                shown.print(f"run {len(finished)}/{len(jobs)}: {line}", highlight=False)
    results: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        results.setdefault(job.name, []).append(finished[job.folder])
    return results


@contextlib.contextmanager
def hinting_runs(jobs: Sequence[Job], finished: Mapping[Path, Any]) -> Iterator[None]:
    """Have what ends a comparison say how much of it is done."""
    try:
        yield
    except (Interrupted, RunFailed, OSError) as error:
        done = f"{len(finished)} of {len(jobs)} runs are done, and what the others have saved is kept"
        setattr(error, "hint", done)  # noqa: B010 (errors of the system have none)
        raise
