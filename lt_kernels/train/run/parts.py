"""The parts of the gradient of the rarest classes' weights, by the class that they come from: recorded, and read back.

They are those of the batches that the run trains on, so sampler, augmentation and mixing have their part in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import PARTS
from lt_kernels.train.files.results import read_numbers
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.gradients import parts_of_batch
from lt_kernels.train.run.table import EpochTable

COLUMNS = ("epoch", "class", "source", "part")
NUMBERS = 2**11  # of an epoch: those of the weights of all classes, or of as many of the rarest, at least of one


@dataclasses.dataclass(frozen=True)
class Parts:
    """`epochs` [E] done, `classes` [R] whose weights they are, the rarest first, and `values` [E, C, R]."""

    epochs: np.ndarray
    classes: np.ndarray
    values: np.ndarray


def rarest(counts: Tensor, most: int) -> Tensor:
    """The indices of up to `most` classes with the fewest training samples, but with some, the rarest first."""
    there = counts.nonzero().flatten()
    return there[counts[there].argsort(stable=True)][:most]


class PartLog(EpochTable):
    """Keep the mean over each epoch's batches of `metrics.gradient_parts`, in the checkpoint and gradient_parts.csv.

    Row: epochs done, the class whose weight is moved, the class of the samples that move it, and the part's length. A
    loss that is no softmax of linear logits and an offset has no rows. The training is the same with it, bit for bit.
    """

    def __init__(self, folder: Path, data: LongTailedData) -> None:
        super().__init__(folder / PARTS, COLUMNS)
        self.classes = rarest(data.class_counts, max(1, NUMBERS // data.num_classes))
        self._clear()

    def _clear(self) -> None:
        self.total: Tensor | None = None  # [C, R], over the batches of the epoch that is under way
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the sum of the epoch that is under way."""
        total = None if self.total is None else self.total.cpu()
        return {**super().state_dict(), "total": total, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's rows and sum."""
        super().load_state_dict(state_dict)
        self.total, self.batches = state_dict["total"], state_dict["batches"]

    def rows(self, values: Tensor) -> Iterable[Sequence[Any]]:
        """A row a class of the weights and a class of the samples."""
        for index, column in zip(self.classes.tolist(), values.T.tolist(), strict=True):
            yield from ([index, source, value] for source, value in enumerate(column))

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Have the module show the features and targets of each batch."""
        super().on_train_start(trainer, pl_module)
        pl_module.watch = self.see

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Begin the epoch's mean."""
        self._clear()

    def see(self, head: Any, features: Tensor, target: Any) -> None:
        """Add the parts of a batch."""
        found = parts_of_batch(head, features, target, self.classes)
        if found is not None:
            self.total = found if self.total is None else self.total.to(found.device) + found
            self.batches += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Add the epoch's rows."""
        if self.total is not None:
            self.add(trainer.current_epoch + 1, (self.total / self.batches).cpu())
        self._clear()

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Look at no further batch, and close the file."""
        pl_module.watch = None
        super().teardown(trainer, pl_module, stage)


def read_parts(folder: Path, num_classes: int | None = None) -> Parts | None:
    """What a run recorded, of `num_classes` classes if they are known, or None where it did not.

    Errors: ConfigError naming the file, where it holds something else.
    """
    path = folder / PARTS
    rows = read_numbers(path, COLUMNS) if path.exists() else []
    if not rows:
        return None
    table = np.array([[row[name] for name in COLUMNS] for row in rows], dtype=float)
    epochs, sources = np.unique(table[:, 0]), np.unique(table[:, 2])
    if num_classes is not None and len(sources) != num_classes:
        raise ConfigError(f"{str(path)!r} must have the {num_classes} classes of the data, got {len(sources)}")
    classes = table[table[:, 0] == epochs[0]][:: len(sources), 1]
    whole = np.stack(np.meshgrid(epochs, classes, sources, indexing="ij"), -1).reshape(-1, 3)
    if not np.array_equal(table[:, :3], whole):
        raise ConfigError(f"{str(path)!r} must have a row for each class and source in every epoch, got others")
    values = table[:, 3].reshape(len(epochs), len(classes), len(sources)).transpose(0, 2, 1)
    return Parts(epochs.astype(int), classes.astype(int), values)
