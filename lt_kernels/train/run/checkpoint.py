"""Checkpoints that are never half written, and the state that makes a resumed run the same run, bit for bit."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lt_kernels.data import LongTailedData
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import LAST
from lt_kernels.train.files.folder import same_settings
from lt_kernels.train.files.tensors import read_sealed, write_sealed

ABOUT = "lt_kernels"  # the key under which a checkpoint says whose it is
PARTS = ("state_dict", "optimizer_states", "callbacks", "loops", "epoch", "global_step")
# counters of one loop over batches, as they are between two epochs
BETWEEN = {"ready": 0, "completed": 0, "started": 0, "processed": 0}


def data_facts(data: LongTailedData) -> dict[str, Any]:
    """What a checkpoint remembers of its data: a run does not go on with other samples."""
    counts = np.ascontiguousarray(data.class_counts.numpy())
    return {
        "classes": data.num_classes,
        "training samples": len(data.train[1]),
        "test samples": len(data.test[1]),
        "class counts": hashlib.sha256(counts.tobytes()).hexdigest(),
    }


def read_checkpoint(path: Path, config: TrainConfig, data: LongTailedData) -> dict[str, Any]:
    """The checkpoint at `path`, of a run of these settings on this data.

    Errors: ConfigError naming the file and what differs.
    """
    checkpoint = read_sealed(path)
    about = checkpoint.get(ABOUT) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or not all(part in checkpoint for part in PARTS):
        raise ConfigError(f"{str(path)!r} must be the checkpoint of a run, got another file of tensors")
    same_settings(config, make_config(about["config"]), path, "checkpoint of another run")
    for name, value in data_facts(data).items():
        if about["data"].get(name) != value:
            was = about["data"].get(name)
            raise ConfigError(f"{str(path)!r} is of a run on other data: {name} were {was}, and are {value}")
    return checkpoint


class SealedCheckpointIO(TorchCheckpointIO):
    """Checkpoints of one run: whole and sealed, and read back for that run alone."""

    def __init__(self, config: TrainConfig, data: LongTailedData) -> None:
        self.config, self.data = config, data

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`, with the run's settings."""
        about = {"config": self.config.as_dict(), "data": data_facts(self.data)}
        write_sealed({**checkpoint, ABOUT: about}, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read the checkpoint back; tensors come to the CPU, and nothing but plain values and tensors is read."""
        return read_checkpoint(Path(path), self.config, self.data)


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
