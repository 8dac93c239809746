"""The gradient's components and the offsets of every class, epoch by epoch: recorded in a run, and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lt_kernels import metrics
from lt_kernels.data import LongTailedData
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import COMPONENTS as FILE
from lt_kernels.train.files.results import read_numbers
from lt_kernels.train.model import readings
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.gradients import components_of
from lt_kernels.train.run.parts import Parts, read_parts
from lt_kernels.train.run.table import EpochTable

COMPONENTS = ("attraction", "repulsion")
NAMES = (*COMPONENTS, "offset", "estimated_offset")
SAMPLES = 2**13  # of the training set, looked at after an epoch
LOGITS = 2**24


@dataclasses.dataclass(frozen=True)
class History:
    """`epochs` [E] done, of each of NAMES the values [E, C], NaN where there are none, and the parts by source."""

    epochs: np.ndarray
    values: dict[str, np.ndarray]
    parts: Parts | None = None


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
    named = {name: values[:, :, place] for place, name in enumerate(NAMES)}
    return History(epochs.astype(int), named, read_parts(folder, num_classes))


class ComponentLog(EpochTable):
    """Keep, after every epoch, each class's gradient components and offsets, in the checkpoint and in components.csv.

    Row: epochs done, class, attraction and repulsion (of a loss that is a softmax of linear logits and an offset; else
    empty), the offset of the training features, and that of the loss's centres where it has some. Looked at are the
    same samples each time, at most 8,192 or one a class, in evaluation mode: the training is the same with it, bit for
    bit.
    """

    def __init__(self, folder: Path, data: LongTailedData) -> None:
        super().__init__(folder / FILE, ("epoch", "class", *NAMES))
        target, classes = data.train[1], data.num_classes
        self.train, self.classes = data.train, classes
        self.natural = readings.evenly(len(target), readings.whole(target, min(SAMPLES, LOGITS // classes)))
        self.each = readings.evenly_by_class(target, classes, max(SAMPLES, classes))

    def rows(self, values: Tensor) -> Iterable[Sequence[Any]]:
        """A row a class."""
        yield from ([index, *row] for index, row in enumerate(values.T.tolist()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Add the epoch's rows; a bias that was replaced after the last epoch is not the one that was trained."""
        values, last = self.measure(pl_module), trainer.current_epoch + 1 == trainer.max_epochs
        if last and pl_module.parts.closing is not None:
            values[: len(COMPONENTS)] = torch.nan
        self.add(trainer.current_epoch + 1, values)

    @torch.no_grad()
    def measure(self, module: Classifier) -> Tensor:
        """The present values, float64 [4, C]; the module is left as it was."""
        was_training = module.training
        module.eval()
        head = readings.trained_head(module)
        weight = readings.weights_of(head, self.classes)
        components: Any = components_of(head, *readings.features_of(module, self.train, self.natural))
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
