"""The gradient's components and the offsets of every class, epoch by epoch: recorded in a run, and read back."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lt_kernels import metrics
from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import close_whole, naming, open_whole
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import COMPONENTS
from lt_kernels.train.files.results import read_numbers
from lt_kernels.train.model import readings
from lt_kernels.train.model.classifier import Classifier

FILE = COMPONENTS
NAMES = ("attraction", "repulsion", "offset", "estimated_offset")
SAMPLES = 2**13  # of the training set, looked at after an epoch
LOGITS = 2**24


@dataclasses.dataclass(frozen=True)
class History:
    """`epochs` [E] done, and of each of NAMES the values [E, C], NaN where there are none."""

    epochs: np.ndarray
    values: dict[str, np.ndarray]


def read_history(folder: Path, num_classes: int | None = None) -> History | None:
    """What a run recorded, of `num_classes` classes if they are known, or None where it did not.

    Errors: ConfigError naming the file, where it holds something else.
    """
    path = folder / FILE
    if not path.exists():
        return None
    rows = read_numbers(path, ("epoch", "class"))
    if not rows:
        return None
    if any(name not in rows[0] for name in NAMES):
        raise ConfigError(f"{str(path)!r} must have columns {', '.join(NAMES)}, got {', '.join(rows[0])}")
    table = np.array([[row[name] for name in ("epoch", "class", *NAMES)] for row in rows], dtype=float)
    epochs, classes = np.unique(table[:, 0]), np.unique(table[:, 1])
    if num_classes is not None and len(classes) != num_classes:
        raise ConfigError(f"{str(path)!r} must have the {num_classes} classes of the data, got {len(classes)}")
    if not np.array_equal(table[:, :2], np.stack(np.meshgrid(epochs, classes, indexing="ij"), -1).reshape(-1, 2)):
        raise ConfigError(f"{str(path)!r} must have a row for each class in every epoch, in order, got others")
    values = table[:, 2:].reshape(len(epochs), len(classes), len(NAMES))
    return History(epochs.astype(int), {name: values[:, :, place] for place, name in enumerate(NAMES)})


class ComponentLog(Callback):
    """Keep, after every epoch, each class's gradient components and offsets, in the checkpoint and in components.csv.

    Row: epochs done, class, attraction and repulsion (of a loss that is a softmax of linear logits and an offset; else
    empty), the offset of the training features, and that of the loss's centres where it has some. Looked at are the
    same samples each time, at most 8,192 or one a class, in evaluation mode: the training is the same with it, bit for
    bit. Must stand before the callback that saves checkpoints.
    """

    def __init__(self, folder: Path, data: LongTailedData) -> None:
        target, classes = data.train[1], data.num_classes
        self.folder, self.train, self.classes = folder, data.train, classes
        self.natural = readings.evenly(len(target), readings.whole(target, min(SAMPLES, LOGITS // classes)))
        self.each = readings.evenly_by_class(target, classes, max(SAMPLES, classes))
        self.epochs: list[int] = []
        self.values: list[Tensor] = []  # [4, C] an epoch

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"epochs": list(self.epochs), "values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows."""
        self.epochs, self.values = list(state_dict["epochs"]), list(state_dict["values"])

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Write the file anew from the rows."""
        self.file = open_whole(self.folder / FILE, ",".join(["epoch", "class", *NAMES]) + "\r\n")
        for epoch, values in zip(self.epochs, self.values, strict=True):
            self._write(epoch, values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Add the epoch's rows."""
        self.epochs.append(trainer.current_epoch + 1)
        self.values.append(self.measure(pl_module))
        self._write(self.epochs[-1], self.values[-1])

    def _write(self, epoch: int, values: Tensor) -> None:
        with naming(self.folder / FILE):
            table = csv.writer(self.file)
            for index, row in enumerate(values.T.tolist()):
                table.writerow([epoch, index, *("" if cell != cell else cell for cell in row)])
            self.file.flush()

    def on_exception(self, trainer: Trainer, pl_module: Classifier, exception: BaseException) -> None:
        """Close the file of a run that is cut short."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Close the file."""
        if hasattr(self, "file"):
            with naming(self.folder / FILE):
                close_whole(self.file)

    @torch.no_grad()
    def measure(self, module: Classifier) -> Tensor:
        """The present values, float64 [4, C]; the module is left as it was."""
        was_training = module.training
        module.eval()
        head = readings.trained_head(module)
        weight = readings.weights_of(head, self.classes)
        components: Any = readings.gradient_parts(head, *readings.features_of(module, self.train, self.natural))
        values = dict.fromkeys(NAMES, torch.full((len(weight),), torch.nan, dtype=torch.float64))
        if not isinstance(components, str):
            values.update(components)
        features, target = readings.features_of(module, self.train, self.each)
        features = readings.as_used(head, features)
        values["offset"] = metrics.empirical_offsets(features, target.to(features.device), weight).cpu()
        centers = readings.centers_of(head)
        if centers is not None:
            values["estimated_offset"] = metrics.estimated_offsets(centers, weight).cpu()
        module.train(was_training)
        return torch.stack([values[name] for name in NAMES])
