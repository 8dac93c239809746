"""The arguments of every command, and what a command calls, which imports what it needs only then."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import lt_kernels
from lt_kernels.system.parsing import SHELLS, Parser, command
from lt_kernels.system.spelling import did_you_mean
from lt_kernels.train import TRAINER, need, require
from lt_kernels.train.serve import arguments as serving

DRAWING = (*TRAINER, "matplotlib")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command. Errors: SystemExit, after a line that says what is wrong."""
    result, commands = parser()
    if words and not words[0].startswith("-") and words[0] not in commands:
        result.error(
            f"COMMAND must be one of {', '.join(commands)}; got {words[0]!r}{did_you_mean(words[0], commands)}"
        )
    arguments = result.parse_args(words)
    arguments.words = list(words)
    return arguments


def parser() -> tuple[Parser, Sequence[str]]:
    """The parser of the command line, and the names of its commands."""
    result = Parser(prog="lt-kernels", description="Long-tailed classification: train, compare, measure.")
    result.add_argument("--version", action="version", version=f"lt-kernels {lt_kernels.__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_compare(commands)
    _add_analyze(commands)
    _add_planar(commands)
    _add_shift(commands)
    _add_recipes(commands)
    serving.add_commands(commands)
    commands.add_parser("bench", help="measure the operators (lt-kernels bench --help)", add_help=False)
    commands.add_parser("doctor", help="what this machine runs on", add_help=False)
    _add_completion(commands)
    return result, tuple(commands.choices)


def _add_train(commands: Any) -> None:
    train = command(
        commands,
        "train",
        _train,
        help="train one model",
        description="Train one model as a config says; keys of devices and gradients: devices, nodes, strategy, "
        "head, accumulate, sync_batch_norm, timeout, precision and clip (docs/runs.md, docs/recipes.md).",
    )
    train.add_argument(
        "--config", metavar="FILE", help="a YAML file, or a recipe such as digits-lt; with --resume it may be left out"
    )
    train.add_argument("--out", metavar="FOLDER", help="where the run is kept (default: runs/NAME-METHOD-seed-SEED)")
    _add_common(train, "continue the run in --out from its last checkpoint")


def _add_compare(commands: Any) -> None:
    compare = command(
        commands,
        "compare",
        _compare,
        help="train several methods over several seeds",
        description="Train methods over seeds; print a table, write a report.",
    )
    compare.add_argument(
        "--data", metavar="NAME", help="a data set, such as digits-lt or stdlib-words (default: that of --config)"
    )
    compare.add_argument(
        "--methods",
        required=True,
        metavar="A,B,...",
        help="such as ce,bs,ldam-drw (-lwr may be appended to each), or all, or variants, those of the recipe",
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default 3)")
    _add_config(compare)
    compare.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    compare.add_argument(
        "--imbalance", type=float, metavar="R", help="largest over smallest class count, instead of the recipe's"
    )
    compare.add_argument("--out", metavar="FOLDER", help="where the runs and the report are kept (default: runs/NAME)")
    _add_jobs(compare)
    _add_common(compare, "finish a comparison that was cut short; runs that are done are not repeated")


def _add_analyze(commands: Any) -> None:
    analyze = command(
        commands,
        "analyze",
        _analyze,
        help="draw what finished runs have learnt",
        description="Write pictures, the numbers behind them and a page for finished runs on one data set.",
    )
    analyze.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder; that of a comparison stands for its runs of seed 0"
    )
    analyze.add_argument("--out", metavar="FOLDER", help="where the files go (default: analysis in the runs' folder)")
    serving.add_checkpoint(analyze)


def _add_planar(commands: Any) -> None:
    planar = command(
        commands,
        "planar",
        _planar,
        help="draw features of two numbers, class weights and regions",
        description="Train small networks with two features on images, and draw where each method puts the classes.",
    )
    planar.add_argument("--data", metavar="NAME", help="a data set of images: digits-lt (default: that of --config)")
    planar.add_argument("--methods", required=True, metavar="A,B,...", help="such as ce,bs,bs-lwr, or variants")
    _add_config(planar)
    planar.add_argument("--out", metavar="FOLDER", help="where the files go (default: runs/NAME-planar)")
    _add_changes(planar)


def _add_shift(commands: Any) -> None:
    shift = command(
        commands,
        "shift",
        _shift,
        help="test where classes are distributed otherwise than in training",
        description="Accuracies on test sets shifted with and against the training set's tail, as trained and "
        "compensated for the test set's class prior; runs that are not there are trained first.",
    )
    shift.add_argument("runs", nargs="*", metavar="RUN", help="folders of finished runs, or of comparisons")
    _add_trained(shift)
    _add_changes(shift)
    shift.add_argument(
        "--most", type=int, metavar="N", help="test samples of the largest class (default: as many as each class has)"
    )
    shift.add_argument(
        "--cosines",
        choices=("leave", "scale"),
        default="leave",
        help="margin losses: not compensated (default), or with their scale times the cosines as logits",
    )
    shift.add_argument("--out", metavar="FOLDER", help="where the files go (default: shift in the runs' folder)")
    _add_jobs(shift)
    _add_quiet(shift)


def _add_trained(shift: argparse.ArgumentParser) -> None:
    """What is trained, in the place of folders of runs."""
    shift.add_argument("--data", metavar="NAME", help="instead of folders: a data set such as digits-lt")
    _add_config(shift)
    shift.add_argument(
        "--methods", metavar="A,B,...", help="with --data or --config: such as ce,pc-softmax,bs,lade, or variants"
    )
    shift.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="with --data or --config: seeds 0 to N - 1 (default 3)"
    )
    shift.add_argument(
        "--from",
        metavar="FOLDER",
        dest="source",
        help="with --data or --config: where the runs are kept (default: runs/NAME)",
    )


def _add_recipes(commands: Any) -> None:
    recipes = command(
        commands,
        "recipes",
        _recipes,
        help="list the recipes, and the published figures that they have the settings of",
        description="List the recipes, print all settings of one, or the published figures with the commands for them.",
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="a recipe, to print it with what its base sets")
    recipes.add_argument("--published", action="store_true", help="the published figures (with NAME: of that recipe)")


def _add_completion(commands: Any) -> None:
    completion = command(
        commands,
        "completion",
        _completion,
        help="a script that completes commands and options in a shell",
        description="Print the script that completes commands, options and files in a shell; docs/installing.md says "
        "where it goes.",
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh, fish or tcsh")


def _add_config(made: argparse.ArgumentParser) -> None:
    made.add_argument("--config", metavar="FILE", help="a YAML file or a recipe (default: the recipe NAME)")


def _add_jobs(made: argparse.ArgumentParser) -> None:
    made.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a GPU, or a core)")


def _add_quiet(made: argparse.ArgumentParser) -> None:
    made.add_argument("--quiet", action="store_true", help="no progress, only the result")


def _add_changes(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change a setting; repeatable"
    )


def _add_common(made: argparse.ArgumentParser, resume: str) -> None:
    _add_changes(made)
    made.add_argument(
        "--print_config", action="store_true", help="print all settings as a file for --config, and do nothing else"
    )
    made.add_argument("--resume", action="store_true", help=resume)
    _add_quiet(made)


def _completion(arguments: argparse.Namespace) -> int:
    print(require("shtab").complete(parser()[0], arguments.shell))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    need(*TRAINER)
    from lt_kernels.train.commands import train

    return train(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    need(*DRAWING)
    from lt_kernels.train.commands import compare

    changes = {"data": arguments.data, "epochs": arguments.epochs, "imbalance": arguments.imbalance}
    return compare(arguments, {key: value for key, value in changes.items() if value is not None})


def _analyze(arguments: argparse.Namespace) -> int:
    need(*DRAWING)
    from lt_kernels.train.commands import analyze

    return analyze(arguments.runs, arguments.out, arguments.checkpoint)


def _planar(arguments: argparse.Namespace) -> int:
    need(*DRAWING)
    from lt_kernels.train.commands import planar

    return planar(arguments.data, arguments.methods, arguments.config, arguments.changes, arguments.out)


def _shift(arguments: argparse.Namespace) -> int:
    need(*DRAWING)
    from lt_kernels.train.shift.command import shift

    return shift(arguments)


def _recipes(arguments: argparse.Namespace) -> int:
    need("rich", "yaml")
    from lt_kernels.train.listing import list_recipes

    return list_recipes(arguments.name, arguments.published)
