"""The steps of a schedule of learning rates that is a class of torch's, and its state in the checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lt_kernels.train.errors import ConfigError
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.run.logs import EpochLog


class ScheduleSteps(Callback):
    """Step the schedule after every step of the optimizer, or every epoch, of the first stage.

    ReduceLROnPlateau is given the epoch's mean training loss. Must stand after the log of epochs, and before the
    callback that saves checkpoints.
    """

    def __init__(self, log: EpochLog) -> None:
        self.epochs = log
        self._schedule: Any = None
        self._state: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Know the module, whose optimizer is made later."""
        self._module = pl_module

    def state_dict(self) -> dict[str, Any]:
        """The schedule's counters."""
        return self._module.schedule.state_dict()  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the counters until the schedule is there."""
        self._state = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Go on from a checkpoint's counters."""
        if self._state is not None:
            pl_module.schedule.load_state_dict(self._state)  # type: ignore[union-attr]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step after the optimizer has."""
        if pl_module.config.schedule_interval == "step" and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._step(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Step after an epoch."""
        if pl_module.config.schedule_interval == "epoch":
            self._step(trainer, pl_module)

    def _step(self, trainer: Trainer, module: Classifier) -> None:
        """Step from the schedule's own rates, which warm-up may have lowered, and leave those as they are."""
        schedule: Any = module.schedule
        if module.in_second:
            return
        groups = trainer.optimizers[0].param_groups
        used = [group["lr"] for group in groups]
        for group, rate in zip(groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        try:
            schedule.step(*[self.epochs.rows[-1]["loss"]] if isinstance(schedule, ReduceLROnPlateau) else ())
        except ValueError as error:  # such as one with fewer steps in all than the run has
            raise ConfigError(
                f"schedule.init_args must fit the run, after {trainer.global_step} steps: {error}"
            ) from error
        for group, rate in zip(groups, used, strict=True):
            group["lr"] = rate
