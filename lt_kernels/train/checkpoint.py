"""Checkpoints that are never half written, and the state that makes a resumed run the same run, bit for bit."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

LAST = "last.ckpt"
# counters of one loop over batches, as they are between two epochs
BETWEEN = {"ready": 0, "completed": 0, "started": 0, "processed": 0}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside, flush to the disk, then rename over: a kill at any moment leaves the old file or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`."""
        path = Path(path)
        beside = path.with_name(path.name + ".tmp")
        with open(beside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, as tensors, numbers and lists (a weights-only load
    reads them).
    """
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the state that other people's code draws from)
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


class ExactResume(Callback):
    """Save `last.ckpt` every `steps` steps within an epoch (0: never) and after every `epochs`-th epoch and the last
    one.

    Must be the last callback: what it saves is the state after every other callback's work.
    """

    def __init__(self, folder: Path, epochs: int, steps: int) -> None:
        self.path = folder / LAST
        self.epochs, self.steps = epochs, steps
        self._between_epochs = False
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states."""
        return random_states()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the generators' states until training begins."""
        self._states = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the generators last of all, before the first batch is drawn."""
        if self._states is not None:
            restore_random_states(self._states)
            self._states = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save within an epoch; after its last batch `on_train_epoch_end` does."""
        if self.steps and trainer.global_step % self.steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        done = trainer.current_epoch + 1
        if done % self.epochs == 0 or done == trainer.max_epochs or self.steps:
            self._between_epochs = True
            trainer.save_checkpoint(self.path)
            self._between_epochs = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the loops' counters as they are between two epochs: the trainer repeats or loses an epoch if saved a
        moment earlier.
        """
        if not self._between_epochs:
            return
        loop = checkpoint["loops"]["fit_loop"]
        epochs = dict.fromkeys(BETWEEN, trainer.current_epoch + 1)
        loop["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
        batches = loop["epoch_loop.batch_progress"]
        batches["total"] = dict.fromkeys(BETWEEN, batches["total"]["ready"])
        batches["current"], batches["is_last_batch"] = dict(BETWEEN), False
