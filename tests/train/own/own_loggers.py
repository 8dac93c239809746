"""Loggers that a user may have written."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger


class Lines(Logger):
    """A line of JSON for every call, and draws from every generator, as for a name."""

    def __init__(self, save_dir: str, file: str = "told.jsonl", version: str = "1") -> None:
        super().__init__()
        self.path, self._version = Path(save_dir) / file, version
        self._write("made")

    def _write(self, what: str, *values: Any) -> None:
        torch.rand(3), random.random(), np.random.rand(2)  # noqa: NPY002
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([what, *values]) + "\n")

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> str:
        return self._version

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._write("settings", params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._write("row", step, metrics)

    def finalize(self, status: str) -> None:
        self._write("end", status)


class Lost(Lines):
    """What cannot reach its server from the second epoch on."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step == 2:
            raise ConnectionError("no answer\nfrom the server")


class Placed(Lines):
    """What has a folder of its own, as MLflow's logger has."""

    def __init__(self, save_dir: str = "./records") -> None:
        Path(save_dir).mkdir(exist_ok=True)
        super().__init__(save_dir)
