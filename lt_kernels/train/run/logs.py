"""The record of a run, one row an epoch: CSV and TensorBoard, no row lost or doubled over a kill and a resume."""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter

from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import close_whole, fresh_folder, naming, open_whole
from lt_kernels.train.files import METRICS, TENSORBOARD
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.scores import GROUPS, judge
from lt_kernels.train.ranks.group import ALONE, Ranks

COLUMNS: tuple[str, ...] = ("epoch", "step", "lr", "loss", "regularizer", "seconds", *GROUPS)


class EpochLog(Callback):
    """Keep a row for every epoch, in the checkpoint too; the files are written anew from these rows when a run is
    resumed.

    Row: epochs done, steps done, the last learning rate (the largest of all groups of parameters), the means over the
    epoch's samples of the loss and of the regularizer (with its strength), seconds of training, and on every `every`-th
    epoch and the last one the accuracies of the balanced test set, or of what is held out for validation, in percent.
    """

    def __init__(self, folder: Path, data: LongTailedData, every: int, ranks: Ranks = ALONE) -> None:
        self.folder, self.data, self.every, self.ranks = folder, data, every, ranks
        held = data.validation
        self.judged = data if held is None else dataclasses.replace(data, test=held)
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self._clear()

    def _clear(self) -> None:
        self.sums: Any = [0.0, 0.0]  # loss, regularizer
        self.step: list[Any] = [0, 0, 0]  # the same of the step that is under way, and its samples
        self.samples: Any = 0
        self.seconds = 0.0

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The rows, and the sums of the epoch that is under way; of several processes those of each."""
        own = {"sums": [float(value) for value in self.sums], "samples": float(self.samples)}
        each = self.ranks.each(own)
        return {"rows": self.rows, **(own if len(each) == 1 else {"ranks": each}), "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows and sums: each process from its own, or the first one from those of all."""
        self.rows, each = list(state_dict["rows"]), state_dict.get("ranks", [state_dict])
        mine = each[self.ranks.rank :][:1] if len(each) == self.ranks.world else each if self.ranks.first else []
        self.sums = [sum((one["sums"][place] for one in mine), 0.0) for place in range(2)]
        self.samples, self.seconds = sum(one["samples"] for one in mine), state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Write the files anew from the rows; the first process alone does."""
        self.started = time.perf_counter()
        if not self.ranks.first:
            return
        fresh_folder(self.folder / TENSORBOARD)
        self.writer = SummaryWriter(str(self.folder / TENSORBOARD))
        known = io.StringIO()
        before = csv.DictWriter(known, COLUMNS)
        before.writeheader()
        before.writerows(self.rows)
        self.file = open_whole(self.folder / METRICS, known.getvalue())  # whoever reads it now finds every row
        self.table = csv.DictWriter(self.file, COLUMNS)
        for row in self.rows:
            self._draw(row)
        self.started = time.perf_counter()

    def _write(self, row: dict[str, float]) -> None:
        if not self.ranks.first:
            return
        with naming(self.folder / METRICS):
            self.table.writerow(row)
            self.file.flush()
        self._draw(row)

    def _draw(self, row: dict[str, float]) -> None:
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
        """Add a batch's loss, once its last part is there; no number is read from the device here."""
        size, loss = outputs["weight"], outputs["data_loss"].double()
        parts = (size * loss, size * (outputs["total"].double() - loss), size)
        self.step = [before + part for before, part in zip(self.step, parts, strict=True)]
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        factor = 1 if pl_module.dealt is None else pl_module.dealt.factor
        loss, regularizer, samples = (factor * part for part in self.step)
        self.sums = [self.sums[0] + loss, self.sums[1] + regularizer]
        self.samples += samples
        self.step = [0, 0, 0]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Close the epoch's row, with the test accuracies when they are due."""
        done = trainer.current_epoch + 1
        own = torch.tensor([*map(float, self.sums), float(self.samples)], dtype=torch.float64)
        loss, regularizer, samples = self.ranks.total(own).tolist()
        row: dict[str, float] = {
            "epoch": done,
            "step": trainer.global_step,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "loss": loss / max(1, samples),
            "regularizer": regularizer / max(1, samples),
            "seconds": self._elapsed(),
        }
        if done % self.every == 0 or done == trainer.max_epochs:
            row.update(judge(pl_module, self.judged, self.ranks).groups)
        self.rows.append(row)
        self._clear()
        self.started = time.perf_counter()
        self._write(row)

    def on_exception(self, trainer: Trainer, pl_module: Classifier, exception: BaseException) -> None:
        """Close the files of a run that is cut short."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Close the files that are open: a signal may come between the two."""
        if hasattr(self, "writer"):
            self.writer.close()
        if hasattr(self, "file"):
            with naming(self.folder / METRICS):
                close_whole(self.file)
