"""The arguments of `lt-kernels predict` and `export`; what they run is imported when they run."""

from __future__ import annotations

import argparse
from typing import Any

from lt_kernels.system.parsing import command
from lt_kernels.train import TRAINER, need

CHECKPOINT = "the state after the last epoch or the best one (default: the one whose accuracies the run's result has)"
PRIOR = "class prior of the probabilities: uniform, train (that of the training set), or a CSV file with the columns "
PRIOR += "class,prior (default: that of the method's own prediction)"


def add_commands(commands: Any) -> None:
    """Both commands, with their arguments."""
    _add_predict(commands)
    _add_export(commands)


def _add_predict(commands: Any) -> None:
    predict = command(
        commands,
        "predict",
        _predict,
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


def _add_export(commands: Any) -> None:
    export = command(
        commands,
        "export",
        _export,
        help="a finished run as a file of torch.export or ONNX",
        description="Write the network and the head of a finished run, from inputs to probabilities or logits, to one "
        "file that runs without this package, on any number of inputs at a time.",
    )
    export.add_argument("run_folder", metavar="RUN", help="the folder of a finished run")
    export.add_argument("--format", choices=("torch", "onnx"), required=True, help="a .pt2 or an .onnx file")
    export.add_argument("--logits", action="store_true", help="logits in the place of probabilities")
    export.add_argument("--prior", metavar="WHICH", help=PRIOR)
    add_checkpoint(export)
    export.add_argument("--out", metavar="FILE", help="the file (default: model.pt2 or model.onnx in the run's folder)")


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    """The argument that says which of a run's checkpoints is read."""
    command.add_argument("--checkpoint", choices=("last", "best"), help=CHECKPOINT)


def _predict(arguments: argparse.Namespace) -> int:
    need(*TRAINER)
    from lt_kernels.train.serve.predict import predict

    return predict(arguments)


def _export(arguments: argparse.Namespace) -> int:
    need(*TRAINER)
    from lt_kernels.train.serve.export import export

    return export(arguments)
