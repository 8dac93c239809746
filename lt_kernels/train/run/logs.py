"""The record of a run, one row an epoch: CSV and TensorBoard, no row lost or doubled over a kill and a resume."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter

from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import close_whole, fresh_folder, naming, open_whole
from lt_kernels.train.files import METRICS, TENSORBOARD
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.scores import GROUPS, judge

COLUMNS: tuple[str, ...] = ("epoch", "step", "lr", "loss", "regularizer", "seconds", *GROUPS)


class EpochLog(Callback):
    """Keep a row for every epoch, in the checkpoint too; the files are written anew from these rows when a run is
    resumed.

    Row: epochs done, steps done, the last learning rate, the means over the epoch's samples of the loss and of the
    regularizer (with its strength), seconds of training, and on every `every`-th epoch and the last one the
    accuracies of the balanced test set, or of what is held out for validation, in percent.
    """

    def __init__(self, folder: Path, data: LongTailedData, every: int) -> None:
        self.folder, self.data, self.every = folder, data, every
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self._clear()

    def _clear(self) -> None:
        self.sums: Any = [0.0, 0.0]  # loss, regularizer
        self.samples, self.seconds = 0, 0.0

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The rows, and the sums of the epoch that is under way."""
        sums = [float(value) for value in self.sums]
        return {"rows": self.rows, "sums": sums, "samples": self.samples, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows and sums."""
        self.rows = list(state_dict["rows"])
        self.sums, self.samples, self.seconds = list(state_dict["sums"]), state_dict["samples"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Write the files anew from the rows."""
        fresh_folder(self.folder / TENSORBOARD)
        self.writer = SummaryWriter(str(self.folder / TENSORBOARD))
        self.file = open_whole(self.folder / METRICS, ",".join(COLUMNS) + "\r\n")
        self.table = csv.DictWriter(self.file, COLUMNS)
        for row in self.rows:
            self._write(row)
        self.started = time.perf_counter()

    def _write(self, row: dict[str, float]) -> None:
        with naming(self.folder / METRICS):
            self.table.writerow(row)
            self.file.flush()
        for name in COLUMNS[2:]:
            if name in row:
                self.writer.add_scalar(name, row[name], int(row["epoch"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Start the epoch's clock."""
        self._clear()
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch's loss; no number is read from the device here."""
        size = len(batch[1])
        loss = outputs["data_loss"].double()
        self.sums = [self.sums[0] + size * loss, self.sums[1] + size * (outputs["loss"].detach().double() - loss)]
        self.samples += size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Close the epoch's row, with the test accuracies when they are due."""
        done = trainer.current_epoch + 1
        row: dict[str, float] = {
            "epoch": done,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": float(self.sums[0]) / max(1, self.samples),
            "regularizer": float(self.sums[1]) / max(1, self.samples),
            "seconds": self._elapsed(),
        }
        if done % self.every == 0 or done == trainer.max_epochs:
            row.update(judge(pl_module, self.data).groups)
        self.rows.append(row)
        self._clear()
        self.started = time.perf_counter()
        self._write(row)

    def on_exception(self, trainer: Trainer, pl_module: Classifier, exception: BaseException) -> None:
        """Close the files of a run that is cut short."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Close the files."""
        if hasattr(self, "writer"):
            self.writer.close()
            with naming(self.folder / METRICS):
                close_whole(self.file)
