"""When training ends early, and which epoch is the best one, by samples that are held out for validation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.run.logs import EpochLog


class Stopping(Callback):
    """Watch the mean class accuracy in the rows of `record`: `epoch` is the first one after which it was `best`, and
    `improved` says whether that is the present one.

    Training ends after an epoch that is judged, `patience` or more epochs after the best one (0: never). Must stand
    after the record and before the callback that saves checkpoints, which hold the state of this.
    """

    def __init__(self, record: EpochLog, patience: int) -> None:
        self.record, self.patience = record, patience
        self.best, self.epoch, self.ended, self.improved = 0.0, 0, False, False

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, and whether training has ended."""
        return {"best": self.best, "epoch": self.epoch, "ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.best, self.epoch, self.ended = (state_dict[name] for name in ("best", "epoch", "ended"))

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """End at once what had ended before it was killed."""
        trainer.should_stop = self.ended

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Compare the epoch's accuracy with the best one, where it was judged."""
        row = self.record.rows[-1]
        self.improved = "all" in row and (not self.epoch or row["all"] > self.best)
        if self.improved:
            self.best, self.epoch = row["all"], int(row["epoch"])
        elif "all" in row and self.patience and row["epoch"] - self.epoch >= self.patience:
            self.ended = trainer.should_stop = True

    def about(self, keep: bool) -> dict[str, Any]:
        """What a result says of it: the epochs that were trained, the best one and its accuracy on validation, and
        after which epoch the accuracies are.
        """
        epochs = int(self.record.rows[-1]["epoch"])
        return {"epochs": epochs, "best": self.epoch, "validation": self.best, "kept": self.epoch if keep else epochs}
