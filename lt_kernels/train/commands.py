"""What `lt-kernels train`, `compare`, `analyze` and `planar` do, from their arguments to their exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lt_kernels.system.interrupts import Interrupted
from lt_kernels.system.storage import write_whole
from lt_kernels.train.analysis.plane_defaults import in_the_plane
from lt_kernels.train.compare.jobs import available_cores, default_jobs, plan, run_comparison
from lt_kernels.train.compare.tables import evaluated_on, rich_table
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError, RunFailed, ToldElsewhere
from lt_kernels.train.files import COMPARISON, LAST, Which
from lt_kernels.train.files.folder import claimed, config_text, hinting, prepare_comparison
from lt_kernels.train.methods.variants import check_methods, variants_of
from lt_kernels.train.output.screen import Screen, print_table
from lt_kernels.train.plainyaml import written
from lt_kernels.train.ranks import launch
from lt_kernels.train.recipes import apply_overrides, config_file, find_recipe, read_settings


def train(arguments: argparse.Namespace) -> int:
    """Train one model, or go on with one, and print its accuracies; in processes of their own, if it takes several."""
    resume = arguments.resume or launch.restarted()
    settings, folder = _settings_of_run(arguments.config, arguments.changes, arguments.out, resume)
    if arguments.print_config:
        print(config_text(settings), end="")
        return 0
    devices, nodes = launch.placement(settings)
    if devices * nodes > 1 and not launch.launched():
        with hinting_train(folder):
            return launch.start(arguments.words, devices)
    with hinting_train(folder):
        # the trainer takes seconds to import: after the settings are known to be good
        from lt_kernels.train.run.training import train_run

        result = train_run(settings, folder, resume, None if arguments.quiet else Screen(stderr=True))
    if launch.rank() == 0:
        if "stopping" in result:
            told = "after {epochs} epochs; best on validation after {best}, {validation:.2f} %; kept: that after {kept}"
            print(told.format_map(result["stopping"]))
        words = ", ".join(f"{name} {value:.2f} %" for name, value in result["accuracy"].items())
        print(f"{settings.method} on {settings.data}: {words}\nrun: {folder}")
    return 0


@contextlib.contextmanager
def hinting_train(folder: Path) -> Iterator[None]:
    """Have what ends a run say what it kept, and how to go on; of several processes the first one says it."""
    try:
        yield
    except Interrupted as stop:
        if launch.rank() > 0:
            raise ToldElsewhere(stop.status) from None
        _hint(stop, folder)
        raise
    except (OSError, RunFailed) as error:
        _hint(error, folder)
        raise


def _hint(error: BaseException, folder: Path) -> None:
    kept, words = folder / LAST, shlex.join(["--resume", "--out", str(folder)])
    hint = f"{str(kept)!r} is kept; go on with: lt-kernels train {words}"
    if not kept.exists():
        hint = "there was no checkpoint yet: the same command starts anew"
    setattr(error, "hint", hint)  # noqa: B010 (errors of the system have none)


def _settings_of_run(
    config: str | None, changes: Sequence[str], out: str | None, resume: bool
) -> tuple[TrainConfig, Path]:
    """The config and the folder of a run; a resumed run has its config in its folder."""
    if config is None:
        if not (resume and out):
            raise ConfigError("--config must name a YAML file, unless --resume and --out name a run, got none")
        config = str(Path(out) / "config.yaml")
    changed = apply_overrides(read_settings(config_file(config)), changes)
    check_methods(changed)
    settings = make_config(changed)
    folder = Path(out) if out else Path("runs") / f"{Path(config).stem}-{settings.method}-seed-{settings.seed}"
    return settings, folder


def named_methods(text: str, settings: Mapping[str, Any]) -> list[str]:
    """The names of a comma-separated list; "all" stands for every method that the network's inputs allow, "variants"
    for the recipe's variants.
    """
    from lt_kernels.train.methods.registry import every_method

    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "all":
            names += every_method(_input_kind(settings))
        else:
            names += variants_of(settings) if name == "variants" else [name]
    return names


def _input_kind(settings: Mapping[str, Any]) -> str:
    """The kind of inputs of a comparison: that of its network, or where the network is a class, of its data."""
    from lt_kernels.train.methods.variants import config_of
    from lt_kernels.train.model.networks import NETWORKS
    from lt_kernels.train.run.build import load_data

    network = settings.get("network", TrainConfig.network)
    if isinstance(network, str):
        return NETWORKS.get(network, ("image", None))[0]  # those of timm are in no list
    return load_data(config_of({**settings, "method_options": {}}, "ce", 0)).input_kind


def named_data(data: str | None, config: str | None) -> str:
    """The data set that a command is given, or that of the recipe it is given. Errors: ConfigError without either."""
    if data is None and config is None:
        raise ConfigError("--data must name a data set, unless --config names a recipe, got neither")
    return data or make_config(read_settings(config_file(config or ""))).data


def compare(arguments: argparse.Namespace, changes: Mapping[str, Any]) -> int:
    """Train methods over seeds, print the table, write the report and name it."""
    cores = available_cores()
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {arguments.jobs}")
    data = named_data(arguments.data, arguments.config)
    file = config_file(arguments.config) if arguments.config else find_recipe(data)
    settings = apply_overrides({**read_settings(file), **changes}, arguments.changes)
    methods = named_methods(arguments.methods, settings)
    workers = max(1, min(arguments.jobs or default_jobs(), len(methods) * arguments.seeds))
    folder = Path(arguments.out) if arguments.out else Path("runs") / data
    jobs = plan(settings, methods, arguments.seeds, folder, max(1, cores // workers))
    if arguments.print_config:
        print(written(settings), end="")
        return 0
    text = written({**settings, "methods_compared": methods, "seeds": arguments.seeds})
    prepare_comparison(folder, arguments.resume)
    with claimed(folder):
        prepare_comparison(folder, arguments.resume)  # again, now that nobody else writes there
        write_whole(folder / COMPARISON, text)
        with hinting(go_on_with(arguments.words)):
            results = run_comparison(jobs, workers, None if arguments.quiet else Screen(stderr=True))
            from lt_kernels.train.compare.report import write_report  # matplotlib and the trainer take seconds

            summaries = write_report(jobs, results, folder, text, workers)
    shown = Screen()
    print_table(shown, rich_table(summaries, f"{data}, accuracy on {evaluated_on(settings)} [%]", shown.encoding))
    print(f"report: {folder / 'report.html'}")
    return 0


def go_on_with(words: Sequence[str]) -> str:
    """How to go on with a command that takes up what there is, once it is told to."""
    resumed = [*words, *([] if "--resume" in words else ["--resume"])]
    return f"go on with: {shlex.join(['lt-kernels', *resumed])}"


def analyze(runs: Sequence[str], out: str | None, checkpoint: Which | None = None) -> int:
    """Draw what finished runs have learnt, and name the page."""
    from lt_kernels.train.analysis.report import analyze_folders

    with hinting("the same command writes all of it anew"):
        page = analyze_folders(runs, out, checkpoint)
    print(f"analysis: {page}")
    return 0


def planar(data: str | None, methods: str, config: str | None, changes: Sequence[str], out: str | None) -> int:
    """Train methods with features of two numbers, and name the picture."""
    data = named_data(data, config)
    recipe = {**read_settings(config_file(config) if config else find_recipe(data)), "data": data}
    settings = apply_overrides(recipe, changes)
    names = named_methods(methods, settings)
    plan(settings, names, 1, Path(), 1)  # for its checks of all names together
    settings_of = {name: apply_overrides(in_the_plane(recipe, name), changes) for name in names}
    jobs = [job for name in names for job in plan(settings_of[name], [name], 1, Path(), 1)]
    folder = Path(out) if out else Path("runs") / f"{data}-planar"
    from lt_kernels.train.analysis.planar import check_method, train_planar, write_planes

    for job in jobs:
        check_method(job.config)
    seed = make_config({**settings, "method": names[0]}).seed
    with claimed(folder), hinting("nothing was written: the same command starts anew"):
        planes = [dataclasses.replace(train_planar(job.config.replace(seed=seed)), method=job.name) for job in jobs]
        picture = write_planes(planes, folder)
    print(f"picture: {picture}")
    return 0
