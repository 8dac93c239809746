"""What a run says while it trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.run.logs import EpochLog


def describe(row: dict[str, float]) -> str:
    """The latest numbers of a run in a few words."""
    words = [f"loss {row['loss']:.4f}"]
    words += [f"{name} {row[name]:.1f} %" for name in ("all", "few") if name in row]
    return ", ".join(words)


class EpochBar(Callback):
    """Show the epochs done and the latest numbers of `record`; about ten lines a run where there is no terminal."""

    def __init__(self, record: EpochLog, console: Console) -> None:
        self.record, self.console = record, console

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Open the bar."""
        columns = (
            TextColumn("epoch"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar within the epoch, for long epochs."""
        if self.console.is_terminal and batch_idx % 50 == 0:
            self.bar.update(
                self.task, completed=round(trainer.current_epoch + batch_idx / trainer.num_training_batches, 2)
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Show the epoch's numbers."""
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, description=describe(self.record.rows[-1]))
        elif done == epochs or done % max(1, epochs // 10) == 0:
            self.console.print(f"epoch {done}/{epochs}: {describe(self.record.rows[-1])}", highlight=False)

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Close the bar."""
        if hasattr(self, "bar"):
            self.bar.stop()
