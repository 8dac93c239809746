"""Several methods, several seeds, one table and one report."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lt_kernels.train.config import ConfigError, TrainConfig
from lt_kernels.train.files import prepare_folder as prepare_run
from lt_kernels.train.files import read_result
from lt_kernels.train.variants import config_of

MARK = "comparison.yaml"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a comparison; `name` is the method's or the variant's."""

    config: TrainConfig
    folder: Path
    name: str


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(settings: Mapping[str, Any], methods: Sequence[str], seeds: int, folder: Path, threads: int) -> list[Job]:
    """The runs, seed by seed, so that a comparison cut short has whole rounds; every config is checked before
    anything runs.

    Errors: ConfigError naming the method, seed or option that cannot be used.
    """
    if not methods or len(set(methods)) != len(methods):
        raise ConfigError(f"--methods must name at least one method, each once, got {','.join(methods)!r}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if settings.get("method_options"):
        raise ConfigError(
            f"method_options must be given as methods.NAME in a comparison, got {settings['method_options']!r}"
        )
    jobs = []
    for seed in range(seeds):
        for method in methods:
            config = config_of({"threads": threads, **settings}, method, seed)
            jobs.append(Job(config, folder / method / f"seed-{seed}", method))
    return jobs


def work(job: Job) -> dict[str, Any]:
    """One run, resumed where its folder holds a part of it; imports the trainer, once a process."""
    from lt_kernels.train.run import train_run

    return train_run(job.config, job.folder, resume=True)


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Do the runs that are not done, `workers` at a time in processes of their own, and yield each when its result is
    there.
    """
    waiting = []
    for job in jobs:
        if job.folder.exists():
            prepare_run(job.config, job.folder, resume=True)
        result = read_result(job.folder)
        if result is None:
            waiting.append(job)
        else:
            yield job, result
    if min(workers, len(waiting)) <= 1:
        for job in waiting:
            yield job, work(job)
        return
    # not fork: a forked process inherits torch's thread pool in whatever state it is
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            why = (
                "a process of the comparison was killed (out of memory?); --resume goes on, --jobs 1 takes less memory"
            )
            raise ConfigError(why) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def compare(jobs: Sequence[Job], workers: int, console: Console | None) -> dict[str, list[dict[str, Any]]]:
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
    found: dict[Path, dict[str, Any]] = {}
    with Progress(*parts, console=shown, disable=not shown.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs))
        for job, result in run_jobs(jobs, workers):
            found[job.folder] = result
            line = f"{job.name}, seed {job.config.seed}: {result['accuracy']['all']:.1f} %"
            bar.update(task, advance=1, description=line)
            if not shown.is_terminal:
                shown.print(f"run {len(found)}/{len(jobs)}: {line}", highlight=False)
    results: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        results.setdefault(job.name, []).append(found[job.folder])
    return results


def prepare_folder(folder: Path, settings: str, resume: bool) -> None:
    """Mark a folder as this comparison's; without resume a folder in use is an error."""
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise ConfigError(f"--out {str(folder)!r} is not empty: finish it with --resume, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(settings, encoding="utf-8")


def write_report(
    jobs: Sequence[Job], results: Mapping[str, list[dict[str, Any]]], folder: Path, settings: str, workers: int
) -> Any:
    """Write table.csv, .md and .json, summary.csv, runs.csv, pairs.csv and report.html; return the summaries."""
    from lt_kernels.train import pairs, tables
    from lt_kernels.train.about import facts
    from lt_kernels.train.files import read_rows
    from lt_kernels.train.report import render

    summaries = [tables.summarize_method(method, runs) for method, runs in results.items()]
    rows = {method: [read_rows(job.folder) for job in jobs if job.name == method] for method in results}
    about = facts(next(iter(results.values()))[0], summaries[0].seeds, workers)
    analyses = [folder / "analysis", *(job.folder / "analysis" for job in jobs)]
    title = f"{jobs[0].config.data}: {len(results)} methods, {summaries[0].seeds} seed(s)"
    pages = {
        "table.csv": tables.table_csv(summaries),
        "table.json": json.dumps(about, indent=1) + "\n",
        "summary.csv": tables.summary_csv(summaries),
        "table.md": tables.markdown(summaries),
        "runs.csv": tables.runs_csv(results),
        "pairs.csv": pairs.pairs_csv(pairs.paired(results)),
        "report.html": render(summaries, results, rows, settings, about, title, analyses),
    }
    if all("per_class_iou" in run for runs in results.values() for run in runs):
        pages["classes.csv"] = tables.classes_csv(results)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return summaries
