"""What `lt-kernels shift` does, from its arguments to its exit status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lt_kernels.system.storage import write_whole
from lt_kernels.train.commands import named_data, named_methods
from lt_kernels.train.compare.jobs import available_cores, default_jobs, plan, run_comparison
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import COMPARISON, CONFIG, RESULT
from lt_kernels.train.files.folder import claimed, hinting, recorded
from lt_kernels.train.output.screen import Screen, print_table
from lt_kernels.train.plainyaml import written
from lt_kernels.train.recipes import apply_overrides, config_file, find_recipe, read_settings
from lt_kernels.train.shift.evaluate import evaluate_shifts, same_data
from lt_kernels.train.shift.report import write_shift


def shift(arguments: argparse.Namespace) -> int:
    """Evaluate runs, trained first where they are not there, on the shifted test sets; print and write the table."""
    if arguments.config and not arguments.data:
        arguments.data = named_data(None, arguments.config)
    if bool(arguments.runs) == bool(arguments.data):
        raise ConfigError(
            "shift must be given either folders of runs, or --data or --config with --methods, got both or neither"
        )
    out, shown = Path(arguments.out) if arguments.out else _beside(arguments), Screen()
    with hinting("the same command goes on"):
        folders = run_folders(arguments.runs) if arguments.runs else trained(arguments)
        with claimed(out):
            evaluated = [evaluate_shifts(folder, arguments.most, arguments.cosines) for folder in folders]
            results, tests = [result for result, _ in evaluated], evaluated[0][1]
            same_data(results)
            table = write_shift(results, tests, out, shown.encoding)
    print_table(shown, table)
    print(f"shift: {out / 'shift.md'}")
    return 0


def _beside(arguments: argparse.Namespace) -> Path:
    """The folder `shift` in that of the comparison, or of the first run."""
    if arguments.runs:
        return Path(arguments.runs[0]) / "shift"
    return _source(arguments) / "shift"


def _source(arguments: argparse.Namespace) -> Path:
    return Path(arguments.source) if arguments.source else Path("runs") / arguments.data


def run_folders(paths: Sequence[str]) -> list[Path]:
    """The folders of the finished runs: each path is one, or the folder of a comparison, which stands for its runs."""
    folders: list[Path] = []
    for path in map(Path, paths):
        inside = [path] if (path / CONFIG).exists() else sorted(part.parent for part in path.glob(f"*/*/{RESULT}"))
        if not inside:
            raise ConfigError(f"runs must be folders of runs or of comparisons, got {str(path)!r}, which holds none")
        folders += inside
    return folders


def trained(arguments: argparse.Namespace) -> list[Path]:
    """The folders of --methods and --seeds within a comparison's folder; runs that are not there are trained."""
    if not arguments.methods:
        raise ConfigError("--methods must name what to compare, such as ce,pc-softmax,bs,lade, got none")
    folder = _source(arguments)
    settings = apply_overrides(settings_of(folder, arguments.data, arguments.config), arguments.changes)
    methods = named_methods(arguments.methods, settings)
    cores = available_cores()
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {arguments.jobs}")
    workers = max(1, min(arguments.jobs or default_jobs(), len(methods) * arguments.seeds))
    jobs = plan(settings, methods, arguments.seeds, folder, max(1, cores // workers))
    with claimed(folder):
        if not (folder / COMPARISON).exists():
            text = {**settings, "methods_compared": methods, "seeds": arguments.seeds}
            write_whole(folder / COMPARISON, written(text))
        run_comparison(jobs, workers, None if arguments.quiet else Screen(stderr=True))
    return [job.folder for job in jobs]


def settings_of(folder: Path, data: str, config: str | None) -> dict[str, Any]:
    """The settings in the file `config`, else of the comparison that the folder holds, else the data set's recipe."""
    if config is not None:
        return {**read_settings(config_file(config)), "data": data}
    if not (folder / COMPARISON).exists():
        return read_settings(find_recipe(data))
    settings, _ = recorded(folder)
    if settings.get("data") != data:
        raise ConfigError(f"--data must be {settings.get('data')!r}, as in {str(folder / COMPARISON)!r}, got {data!r}")
    return settings
