"""A table that grows by some rows after every epoch: kept in the checkpoint, and written to a file of the run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lt_kernels.system.storage import close_whole, naming, open_whole
from lt_kernels.train.model.classifier import Classifier


class EpochTable(Callback):
    """Keep a tensor for every epoch, in the checkpoint too; the file is written anew from them when a run is resumed.

    A subclass calls `add` after an epoch, and says by `rows` what a tensor's rows are. An empty cell is no number. Must
    stand before the callback that saves checkpoints.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        self.epochs: list[int] = []
        self.values: list[Tensor] = []

    def rows(self, values: Tensor) -> Iterable[Sequence[Any]]:
        """The cells of an epoch's rows, without the epoch."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"epochs": list(self.epochs), "values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows."""
        self.epochs, self.values = list(state_dict["epochs"]), list(state_dict["values"])

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Write the file anew from the rows."""
        self.file = open_whole(self.path, ",".join(self.columns) + "\r\n")
        for epoch, values in zip(self.epochs, self.values, strict=True):
            self._write(epoch, values)

    def add(self, epoch: int, values: Tensor) -> None:
        """Add the rows of an epoch."""
        self.epochs.append(epoch)
        self.values.append(values)
        self._write(epoch, values)

    def _write(self, epoch: int, values: Tensor) -> None:
        with naming(self.path):
            table = csv.writer(self.file)
            for row in self.rows(values):
                table.writerow([epoch, *("" if cell != cell else cell for cell in row)])
            self.file.flush()

    def on_exception(self, trainer: Trainer, pl_module: Classifier, exception: BaseException) -> None:
        """Close the file of a run that is cut short."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Close the file."""
        if hasattr(self, "file"):
            with naming(self.path):
                close_whole(self.file)
