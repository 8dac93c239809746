"""What `lt-kernels export` does: a finished run as a file that needs none of this package, of torch or of ONNX."""

from __future__ import annotations

import argparse
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lt_kernels
from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import write_whole
from lt_kernels.train import need
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.serve.pictures import pixels_of, takes_pictures
from lt_kernels.train.serve.priors import prior_of
from lt_kernels.train.serve.scoring import Scorer, scorer_of

ENDINGS = {"torch": "model.pt2", "onnx": "model.onnx"}
ABOUT = "about.json"  # within a .pt2: what an ONNX file has as its metadata
OPSET = 20


def export(arguments: argparse.Namespace) -> int:
    """Write the file and name it."""
    if arguments.format == "onnx":
        need("onnx", "onnxscript", extra="export", what="ONNX")
    if arguments.logits and arguments.prior:
        raise ConfigError(f"--prior must be left out with --logits, got {arguments.prior!r}")
    config, data, module = load_run(arguments.run_folder, arguments.checkpoint)
    first = pixels_of(data) if takes_pictures(data) else None
    prior = prior_of(arguments.prior, data)
    scorer = scorer_of(config, data, module, prior, first, arguments.logits).eval()
    example = _example(data)
    about = about_run(config, data, example, "logits" if arguments.logits else "probabilities", arguments.prior)
    content = (_torch if arguments.format == "torch" else _onnx)(scorer, example, about)
    out = Path(arguments.out or Path(arguments.run_folder) / ENDINGS[arguments.format])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, content)
    print(f"{about['output']} of {config.method} from {about['input']}: {out}")
    return 0


def _example(data: LongTailedData) -> Tensor:
    """Two inputs, as the file takes them: pictures as bytes."""
    rows = next(iter(data.test[0].split(2)))
    rows = torch.cat([rows, rows])[:2]  # where there is but one
    return torch.zeros_like(rows, dtype=torch.uint8) if takes_pictures(data) else rows


def about_run(
    config: TrainConfig, data: LongTailedData, example: Tensor, output: str, prior: str | None
) -> dict[str, Any]:
    """What the file says of itself, as plain values."""
    dtype = str(example.dtype).removeprefix("torch.")
    shape = ", ".join(map(str, example.shape[1:]))
    pixels = ", pixels 0 to 255" if takes_pictures(data) else ""
    return {
        "class_names": list(data.class_names),
        "method": config.method,
        "data": config.data,
        "network": config.network,
        "input": f"{dtype} [batch, {shape}]{pixels}",
        "output": output,
        "prior": prior or "as trained",
        "lt_kernels": lt_kernels.__version__,
        "torch": torch.__version__,
    }


def exported(scorer: Scorer, example: Tensor) -> torch.export.ExportedProgram:
    """The scorer's graph, for any number of inputs."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own parts
        return torch.export.export(scorer, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _torch(scorer: Scorer, example: Tensor, about: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(exported(scorer, example), buffer, extra_files={ABOUT: json.dumps(about)})
    return buffer.getvalue()


def _onnx(scorer: Scorer, example: Tensor, about: Mapping[str, Any]) -> bytes:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's and onnxscript's, of their own parts
            program: Any = torch.onnx.export(
                exported(scorer, example),
                (),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=[about["output"]],
            )
    finally:
        logger.setLevel(level)
    model = program.model_proto
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    return model.SerializeToString()
