"""The callback that turns schedules, functions of the epoch, into settings of the module and the optimizer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from lt_kernels.train.model.classifier import Classifier


class EpochSettings(Callback):
    """Apply what depends on the epoch: deferred weights, regularizer strength, and the learning rate at every step."""

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Apply the present epoch's settings: a run resumed within an epoch sees no start of it."""
        pl_module.apply_epoch(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Apply the epoch's settings; a second stage begins without the first one's momentum."""
        pl_module.apply_epoch(trainer.current_epoch)
        if pl_module.in_second and trainer.current_epoch == pl_module.config.epochs:
            trainer.optimizers[0].state.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the step."""
        rate = pl_module.rate(trainer.current_epoch, batch_idx, int(trainer.num_training_batches))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate
