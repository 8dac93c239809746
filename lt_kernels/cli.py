"""The command line: lt-kernels train | compare | bench | doctor | analyze | planar | shift | recipes | predict.

Only the command that runs imports what it needs: help and doctor work without the trainer.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lt_kernels.system import interrupts, terminal
from lt_kernels.system.storage import FolderInUse
from lt_kernels.train.serve import arguments as serving

ROOT = Path(__file__).resolve().parents[1]
# what a command that was interrupted has done, where it does not say so itself
BEGUN: dict[str, str] = dict.fromkeys(["train", "compare", "analyze", "planar", "shift"], "nothing was begun")
BEGUN["bench"] = "cases that were measured are kept"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed (a full disk, a process that died), 2 wrong
    arguments or files, 128 + the signal's number interrupted (130 for Ctrl-C, 143 for SIGTERM), 141 closed pipe.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with interrupts.raised(), terminal.streams():
            return _guarded(words)
    except interrupts.Interrupted as stop:  # after its work
        return stop.status
    except OSError as error:  # of stdout or stderr themselves
        terminal.silence()
        if isinstance(error, BrokenPipeError):
            return terminal.CLOSED
        return _say(words, f"what it prints cannot be written: {error.strerror}", "", 1)


def _guarded(words: Sequence[str]) -> int:
    """The status of a command; what ends it for a reason that a user can mend is said in a line."""
    try:
        return _run(words)
    except interrupts.Interrupted as stop:
        return _say(words, str(stop), stop.hint or BEGUN.get(words[0] if words else "", ""), stop.status)
    except BrokenPipeError:
        raise
    except FolderInUse as error:
        return _say(words, str(error), "wait for it, or end it, or choose another folder", 2)
    except OSError as error:
        where = "" if error.filename is None else f"{str(error.filename)!r}: "
        return _say(words, f"{where}{error.strerror or error}", getattr(error, "hint", ""), 1)
    finally:
        sys.stdout.flush()  # here a closed pipe is still an error that can be caught


def _run(words: Sequence[str]) -> int:
    if words[:1] in (["doctor"], ["bench"]):
        return _dispatch(words[0], words[1:])
    arguments = parser().parse_args(words)
    arguments.words = list(words)
    from lt_kernels.system.files import FileError
    from lt_kernels.train import MissingTrainer
    from lt_kernels.train.errors import ConfigError, RunFailed, ToldElsewhere

    try:
        return arguments.run(arguments)
    except (ConfigError, FileError, MissingTrainer) as error:
        return _say(words, str(error), "", 2)
    except RunFailed as error:
        return _say(words, str(error), error.hint, 1)
    except ToldElsewhere as error:
        return error.status


def _say(words: Sequence[str], what: str, hint: str, status: int) -> int:
    """One line on stderr: the command, what happened, and what to do next."""
    text = "; ".join(filter(None, [" ".join(what.split()), hint]))
    print(f"lt-kernels {next(iter(words), '')}: {text}", file=sys.stderr, flush=True)
    return status


def _dispatch(command: str, words: Sequence[str]) -> int:
    """Commands that read their own arguments."""
    if command == "doctor":
        from lt_kernels import doctor

        return doctor.main(words)
    # the benchmarks are part of the repository, not of the installed package
    if (ROOT / "benchmarks" / "run.py").exists() and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        module = importlib.import_module("benchmarks.run")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.run"):
            raise
        print(
            f"lt-kernels bench: the folder benchmarks/ of the repository is needed, and not found in {ROOT}",
            file=sys.stderr,
        )
        return 2
    return module.main(words)


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    result = argparse.ArgumentParser(prog="lt-kernels", description="Train and compare long-tailed classifiers.")
    names = "train | compare | bench | doctor | analyze | planar | shift | recipes | predict"
    commands = result.add_subparsers(dest="command", required=True, metavar=names)
    _add_train(commands)
    _add_compare(commands)
    _add_analyze(commands)
    _add_planar(commands)
    _add_shift(commands)
    _add_recipes(commands)
    serving.add_commands(commands)
    commands.add_parser("bench", help="measure the operators (lt-kernels bench --help)", add_help=False)
    commands.add_parser("doctor", help="what this machine runs on", add_help=False)
    return result


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train one model",
        description="Train one model as a config says; keys of devices and gradients: devices, nodes, strategy, "
        "head, accumulate, sync_batch_norm, timeout, precision and clip (docs/runs.md, docs/recipes.md).",
    )
    train.add_argument(
        "--config", metavar="FILE", help="a YAML file, or a recipe such as digits-lt; with --resume it may be left out"
    )
    train.add_argument("--out", metavar="FOLDER", help="where the run is kept (default: runs/NAME-METHOD-seed-SEED)")
    _add_common(train, "continue the run in --out from its last checkpoint")
    train.set_defaults(run=_train)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="train several methods over several seeds",
        description="Train methods over seeds; print a table, write a report.",
    )
    compare.add_argument(
        "--data", required=True, metavar="NAME", help="a data set, such as digits-lt, stdlib-words or digit-scenes"
    )
    compare.add_argument(
        "--methods",
        required=True,
        metavar="A,B,...",
        help="such as ce,bs,ldam-drw (-lwr may be appended to each), or all",
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default 3)")
    compare.add_argument("--config", metavar="FILE", help="a YAML file or a recipe (default: the recipe NAME)")
    compare.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    compare.add_argument(
        "--imbalance", type=float, metavar="R", help="largest over smallest class count, instead of the recipe's"
    )
    compare.add_argument("--out", metavar="FOLDER", help="where the runs and the report are kept (default: runs/NAME)")
    compare.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a GPU, or a core)")
    _add_common(compare, "finish a comparison that was cut short; runs that are done are not repeated")
    compare.set_defaults(run=_compare)


def _add_analyze(commands: Any) -> None:
    analyze = commands.add_parser(
        "analyze",
        help="draw what finished runs have learnt",
        description="Write pictures, the numbers behind them and a page for finished runs on one data set.",
    )
    analyze.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder; that of a comparison stands for its runs of seed 0"
    )
    analyze.add_argument("--out", metavar="FOLDER", help="where the files go (default: analysis in the runs' folder)")
    analyze.set_defaults(run=_analyze)


def _add_planar(commands: Any) -> None:
    planar = commands.add_parser(
        "planar",
        help="draw features of two numbers, class weights and regions",
        description="Train small networks with two features on images, and draw where each method puts the classes.",
    )
    planar.add_argument("--data", required=True, metavar="NAME", help="a data set of images: digits-lt")
    planar.add_argument("--methods", required=True, metavar="A,B,...", help="such as ce,bs,bs-lwr")
    planar.add_argument("--config", metavar="FILE", help="a YAML file or a recipe (default: the recipe NAME)")
    planar.add_argument("--out", metavar="FOLDER", help="where the files go (default: runs/NAME-planar)")
    _add_changes(planar)
    planar.set_defaults(run=_planar)


def _add_shift(commands: Any) -> None:
    shift = commands.add_parser(
        "shift",
        help="test where classes are distributed otherwise than in training",
        description="Accuracies on test sets shifted with and against the training set's tail, as trained and "
        "compensated for the test set's class prior; runs that are not there are trained first.",
    )
    shift.add_argument("runs", nargs="*", metavar="RUN", help="folders of finished runs, or of comparisons")
    shift.add_argument("--data", metavar="NAME", help="instead of folders: a data set such as digits-lt")
    shift.add_argument("--config", metavar="FILE", help="a YAML file or a recipe (default: the recipe NAME)")
    shift.add_argument(
        "--methods", metavar="A,B,...", help="with --data or --config: such as ce,pc-softmax,bs,lade, or variants"
    )
    shift.add_argument("--seeds", type=int, default=3, metavar="N", help="with --data: seeds 0 to N - 1 (default 3)")
    shift.add_argument(
        "--from", metavar="FOLDER", dest="source", help="with --data: where the runs are kept (default: runs/NAME)"
    )
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
    shift.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a GPU, or a core)")
    shift.add_argument("--quiet", action="store_true", help="no progress, only the result")
    shift.set_defaults(run=_shift)


def _add_recipes(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes",
        help="list the recipes, and the published figures that they have the settings of",
        description="List the recipes, print all settings of one, or the published figures with the commands for them.",
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="a recipe, to print it with what its base sets")
    recipes.add_argument("--published", action="store_true", help="the published figures (with NAME: of that recipe)")
    recipes.set_defaults(run=_recipes)


def _add_changes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change a setting; repeatable"
    )


def _add_common(command: argparse.ArgumentParser, resume: str) -> None:
    _add_changes(command)
    command.add_argument("--resume", action="store_true", help=resume)
    command.add_argument("--quiet", action="store_true", help="no progress, only the result")


def _need(*modules: str) -> None:
    from lt_kernels.train import need

    need(*modules)


def _train(arguments: argparse.Namespace) -> int:
    _need("lightning", "rich", "yaml", "tensorboard")
    from lt_kernels.train.commands import train

    return train(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    _need("lightning", "rich", "yaml", "tensorboard", "matplotlib")
    from lt_kernels.train.commands import compare

    changes = {"data": arguments.data, "epochs": arguments.epochs, "imbalance": arguments.imbalance}
    return compare(arguments, {key: value for key, value in changes.items() if value is not None})


def _analyze(arguments: argparse.Namespace) -> int:
    _need("lightning", "rich", "yaml", "tensorboard", "matplotlib")
    from lt_kernels.train.commands import analyze

    return analyze(arguments.runs, arguments.out)


def _planar(arguments: argparse.Namespace) -> int:
    _need("lightning", "rich", "yaml", "tensorboard", "matplotlib")
    from lt_kernels.train.commands import planar

    return planar(arguments.data, arguments.methods, arguments.config, arguments.changes, arguments.out)


def _shift(arguments: argparse.Namespace) -> int:
    _need("lightning", "rich", "yaml", "tensorboard", "matplotlib")
    from lt_kernels.train.shift.command import shift

    return shift(arguments)


def _recipes(arguments: argparse.Namespace) -> int:
    _need("rich", "yaml")
    from lt_kernels.train.listing import list_recipes

    return list_recipes(arguments.name, arguments.published)


if __name__ == "__main__":
    raise SystemExit(main())
