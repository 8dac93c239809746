"""The record of a run, one row an epoch: CSV and TensorBoard, without a row lost or doubled over a kill and a resume."""

from __future__ import annotations

import csv
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter

from lt_kernels.data import LongTailedData
from lt_kernels.train.module import Classifier, predict
from lt_kernels.train.scores import GROUPS, score

COLUMNS = ("epoch", "step", "lr", "loss", "seconds", *GROUPS)


class EpochLog(Callback):
    """Keep a row for every epoch, in the checkpoint too; the files are written anew from these rows when a run is resumed.

    Row: epochs done, steps done, the last learning rate, the mean loss over the epoch's samples (regularizer included), seconds of
    training, and on every `every`-th epoch and the last one the accuracies of the balanced test set in percent.
    """

    def __init__(self, folder: Path, data: LongTailedData, every: int) -> None:
        self.folder, self.data, self.every = folder, data, every
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self._clear()

    def _clear(self) -> None:
        self.loss_sum: Any = 0.0
        self.samples, self.seconds = 0, 0.0

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The rows, and the sums of the epoch that is under way."""
        return {"rows": self.rows, "loss_sum": float(self.loss_sum), "samples": self.samples, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows and sums."""
        self.rows = list(state_dict["rows"])
        self.loss_sum, self.samples, self.seconds = state_dict["loss_sum"], state_dict["samples"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Write the files anew from the rows."""
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        self.file = open(self.folder / "metrics.csv", "w", newline="", encoding="utf-8")
        self.table = csv.DictWriter(self.file, COLUMNS)
        self.table.writeheader()
        for row in self.rows:
            self._write(row)
        self.started = time.perf_counter()

    def _write(self, row: dict[str, float]) -> None:
        self.table.writerow(row)
        self.file.flush()
        for name in COLUMNS[2:]:
            if name in row:
                self.writer.add_scalar(name, row[name], int(row["epoch"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Start the epoch's clock."""
        self._clear()
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a batch's loss; no number is read from the device here."""
        size = len(batch[1])
        self.loss_sum = self.loss_sum + outputs["loss"].detach().double() * size
        self.samples += size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Close the epoch's row, with the test accuracies when they are due."""
        done = trainer.current_epoch + 1
        row: dict[str, float] = {
            "epoch": done,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": float(self.loss_sum) / max(1, self.samples),
            "seconds": self._elapsed(),
        }
        if done % self.every == 0 or done == trainer.max_epochs:
            row.update(score(predict(pl_module, self.data.test[0]), self.data).groups)
        self.rows.append(row)
        self._clear()
        self.started = time.perf_counter()
        self._write(row)

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Close the files."""
        if hasattr(self, "writer"):
            self.writer.close()
            self.file.close()


def read_rows(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`; a cell left empty is left out."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def median_seconds(rows: list[dict[str, float]]) -> float:
    """The median of the epochs' seconds: the first epoch, with its warming up, does not count more than any other."""
    return float(torch.tensor([row["seconds"] for row in rows]).median()) if rows else float("nan")
