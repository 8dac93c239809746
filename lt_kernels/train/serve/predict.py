"""What `lt-kernels predict` does: the likeliest classes of inputs, with their probabilities, as a CSV file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import write_whole
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.output.cells import csv_text
from lt_kernels.train.ranks.mesh import device_type
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.serve.pictures import files_of, pictures_of, pixels_of
from lt_kernels.train.serve.priors import prior_of
from lt_kernels.train.serve.scoring import Scorer, scorer_of, scores_of

AT_ONCE = 256
PREDICTIONS = "predictions.csv"


def predict(arguments: argparse.Namespace) -> int:
    """Write the likeliest classes of files, or of the run's test set, and name the file."""
    config, data, module = load_run(arguments.run_folder, arguments.checkpoint)
    if data.input_kind == "scene":
        raise ConfigError(f"the run must have one class an input, got {data.name}, where each pixel has one")
    top = min(5, data.num_classes) if arguments.top is None else arguments.top
    if not 1 <= top <= data.num_classes:
        raise ConfigError(f"--top must be from 1 to the {data.num_classes} classes of the run, got {top}")
    prior = prior_of(arguments.prior, data)
    names, inputs, truth = _inputs(arguments.input, data)
    first = pixels_of(data) if arguments.input else None
    scorer = scorer_of(config, data, module.to(device_type()), prior, first)
    text = table(zip(names, ranked(scorer, inputs, top), strict=True), data, top, truth)
    out = Path(arguments.out) if arguments.out else Path(arguments.run_folder) / PREDICTIONS
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text)
    print(f"{len(inputs)} predictions of {config.method}: {out}")
    return 0


def _inputs(paths: Sequence[str] | None, data: LongTailedData) -> tuple[Iterable[str], Any, Tensor | None]:
    """Names and inputs, of files or of the test set, and the classes of the latter."""
    if not paths:
        return map(str, range(len(data.test[1]))), data.test[0], data.test[1]
    files = files_of(paths)
    return files, pictures_of(files, data), None


def ranked(scorer: Scorer, inputs: Any, top: int) -> Iterator[tuple[list[int], list[float]]]:
    """The `top` likeliest classes of each input, and their probabilities, the largest first."""
    for part in inputs.split(AT_ONCE):
        best = scores_of(scorer, part).topk(top, dim=-1)
        yield from zip(best.indices.tolist(), best.values.tolist())


def table(
    rows: Iterable[tuple[str, tuple[list[int], list[float]]]], data: LongTailedData, top: int, truth: Tensor | None
) -> str:
    """A line for each input: its name, its class where `truth` [N] is known, and the likeliest classes by name."""
    own = [] if truth is None else ["class"]
    pairs = [cell for place in range(1, top + 1) for cell in (f"class_{place}", f"probability_{place}")]
    lines: list[list[str]] = [["input", *own, *pairs]]
    for place, (name, (classes, shares)) in enumerate(rows):
        known = [] if truth is None else [data.class_names[int(truth[place])]]
        cells = (cell for one, share in zip(classes, shares) for cell in (data.class_names[one], f"{share:.6g}"))
        lines.append([name, *known, *cells])
    return csv_text(lines)
