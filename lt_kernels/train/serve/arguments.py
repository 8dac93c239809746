"""The arguments of `lt-kernels predict`; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from lt_kernels.train import need

CHECKPOINT = "the state after the last epoch or the best one (default: the one whose accuracies the run's result has)"
PRIOR = "class prior of the probabilities: uniform, train (that of the training set), or a CSV file with the columns "
PRIOR += "class,prior (default: that of the method's own prediction)"


def add_commands(commands: Any) -> None:
    """The command, with its arguments."""
    _add_predict(commands)


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="classes and probabilities of pictures, or of the test set",
        description="Write the likeliest classes of a finished run, with their probabilities, to a CSV file.",
    )
    predict.add_argument("run_folder", metavar="RUN", help="the folder of a finished run")
    what = predict.add_mutually_exclusive_group()
    what.add_argument(
        "--input", nargs="+", metavar="PATH", help="pictures, or folders of them, cut and scaled as those of the test"
    )
    what.add_argument("--split", choices=("test",), default="test", help="the run's test set (default)")
    predict.add_argument("--top", type=int, metavar="K", help="how many classes a line has (default: 5, or all)")
    predict.add_argument("--prior", metavar="WHICH", help=PRIOR)
    add_checkpoint(predict)
    predict.add_argument("--out", metavar="FILE", help="the CSV file (default: predictions.csv in the run's folder)")
    predict.set_defaults(run=_predict)


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    """The argument that says which of a run's checkpoints is read."""
    command.add_argument("--checkpoint", choices=("last", "best"), help=CHECKPOINT)


def _predict(arguments: argparse.Namespace) -> int:
    need("lightning", "rich", "yaml", "tensorboard")
    from lt_kernels.train.serve.predict import predict

    return predict(arguments)
