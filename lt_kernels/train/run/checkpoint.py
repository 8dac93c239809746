"""Checkpoints that are never half written, and the state that makes a resumed run the same run, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lt_kernels.data import LongTailedData
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import BEST, LAST
from lt_kernels.train.files.folder import is_given_up, same_settings
from lt_kernels.train.files.shards import check_shards, remove_shards
from lt_kernels.train.files.tensors import read_sealed, write_sealed
from lt_kernels.train.model.layout import SHARDS
from lt_kernels.train.ranks.group import ALONE, Ranks
from lt_kernels.train.run.generators import random_states, restore_random_states, seed_rank

COUNTS, NAMES = "class counts", "class names"  # what data are remembered by, beside their numbers
SHOWN = 3  # of the classes that differ
CLASSES = "classes"  # each class by itself, for an error's words
ABOUT = "lt_kernels"  # the key under which a checkpoint says whose it is
PARTS = ("state_dict", "optimizer_states", "callbacks", "loops", "epoch", "global_step")
# counters of one loop over batches, as they are between two epochs
BETWEEN = {"ready": 0, "completed": 0, "started": 0, "processed": 0}


def data_facts(data: LongTailedData) -> dict[str, Any]:
    """What a checkpoint remembers of its data: a run does not go on with other samples."""
    counts = np.ascontiguousarray(data.class_counts.numpy())
    return {
        "classes": data.num_classes,
        NAMES: hashlib.sha256("\0".join(data.class_names).encode("utf-8", "surrogateescape")).hexdigest(),
        "training samples": len(data.train[1]),
        "test samples": len(data.test[1]),
        COUNTS: hashlib.sha256(counts.tobytes()).hexdigest(),
        **({} if data.validation is None else {"validation samples": len(data.validation[1])}),
    }


def _classes(data: LongTailedData) -> dict[str, list[Any]]:
    """The facts of each class, to say which are others."""
    return {COUNTS: data.class_counts.tolist(), NAMES: list(data.class_names)}


def read_checkpoint(path: Path, config: TrainConfig, data: LongTailedData, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The checkpoint at `path`, of a run of these settings on this data; of the files beside it each of `ranks` checks
    its part.

    Errors: ConfigError naming the file and what differs.
    """
    checkpoint = read_sealed(path)
    about = checkpoint.get(ABOUT) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or not all(part in checkpoint for part in PARTS):
        raise ConfigError(f"{str(path)!r} must be the checkpoint of a run, got another file of tensors")
    before = make_config(about["config"])
    same_settings(config, before, path, "checkpoint of another run")
    for name, value in data_facts(data).items():
        was = about["data"].get(name)
        if was != value and not (name == NAMES and was is None):  # earlier checkpoints do not have them
            change = _change(name, about, data) if name in (COUNTS, NAMES) else f"were {was}, and are {value}"
            raise ConfigError(f"{str(path)!r} is of a run on other data: {name} {change}")
    if SHARDS in checkpoint:
        checkpoint[SHARDS]["beside"] = str(path.parent)
        check_shards(checkpoint[SHARDS], path.parent, ranks.rank, ranks.world)
    _count_anew(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], before.accumulate, config.accumulate)
    return checkpoint


def _change(name: str, about: dict[str, Any], data: LongTailedData) -> str:
    """How many classes are otherwise than before, and the first of them, where the checkpoint has them."""
    if CLASSES not in about:
        return "are others (an earlier checkpoint, which does not say which)"
    now = _classes(data)[name]
    changes = [
        f"{data.class_names[place]!r} had {before}, and has {after}"
        if name == COUNTS
        else f"{before!r} is now {after!r}"
        for place, (before, after) in enumerate(zip(about[CLASSES][name], now, strict=True))
        if before != after
    ]
    more = ", ..." if len(changes) > SHOWN else ""
    return f"differ for {len(changes)} of {len(now)}: {'; '.join(changes[:SHOWN])}{more}"


def _count_anew(progress: dict[str, Any], before: int, now: int) -> None:
    """Have the trainer's counters, which are of micro-batches, count those of another size: it stands between steps,
    and may not yet count the last micro-batch as completed.
    """
    for counts in (progress["total"], progress["current"]):
        left = counts["ready"] - counts["completed"]
        counts.update(dict.fromkeys(counts, counts["ready"] // before * now))
        counts["completed"] -= left


class SealedCheckpointIO(TorchCheckpointIO):
    """Checkpoints of one run: whole and sealed, and read back for that run alone."""

    def __init__(self, config: TrainConfig, data: LongTailedData) -> None:
        self.config, self.data = config, data
        self.ready: dict[str, Any] | None = None  # a checkpoint that was read before the trainer asks for it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`, with the run's settings, and remove the shards of the one before."""
        about = {"config": self.config.as_dict(), "data": data_facts(self.data), CLASSES: _classes(self.data)}
        write_sealed({**checkpoint, ABOUT: about}, Path(path))
        remove_shards(Path(path).parent, checkpoint.get(SHARDS, {}).get("folder"))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read the checkpoint back; tensors come to the CPU, and nothing but plain values and tensors is read."""
        ready, self.ready = self.ready, None
        return read_checkpoint(Path(path), self.config, self.data) if ready is None else ready


def saved_for(config: TrainConfig, data: LongTailedData, folder: Path, ranks: Ranks) -> SealedCheckpointIO:
    """The reader and writer of a run's checkpoints; the one that is there is read and checked, unless it is
    a failed run's that this one takes the place of.

    Errors: ConfigError as for `read_checkpoint`.
    """
    found = SealedCheckpointIO(config, data)
    if (folder / LAST).exists() and not is_given_up(config, folder):
        found.ready = read_checkpoint(folder / LAST, config, data, ranks)
    return found


class ExactResume(Callback):
    """Save `last.ckpt` every `checkpoint_steps` steps within an epoch (0: never), after every `checkpoint_epochs`-th
    epoch and after the last one; and before it `best.ckpt`, where `best` says that the epoch is that. A run that is
    killed between the two repeats the epoch, and writes both.

    Must be the last callback that has a state: what it saves is that after every other callback's work.
    """

    def __init__(self, folder: Path, config: TrainConfig, ranks: Ranks, best: Callable[[], bool]) -> None:
        self.folder, self.ranks, self.best = folder, ranks, best
        self.epochs, self.steps = config.checkpoint_epochs, config.checkpoint_steps
        self._between_epochs = False
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states, of several processes those of each."""
        states = self.ranks.each(random_states())
        return states[0] if self.ranks.world == 1 else {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the generators' states until training begins."""
        self._states = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the generators last of all, before the first batch is drawn; of another number of processes, let each
        draw from a stream of its own.
        """
        if self._states is None:
            return
        states, self._states = self._states.get("ranks", [self._states]), None
        if len(states) == self.ranks.world:
            restore_random_states(states[self.ranks.rank])
        else:
            seed_rank(pl_module.config.seed, self.ranks.rank, trainer.global_step, self.ranks.world)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch, between two steps; after its last batch `on_train_epoch_end` does."""
        between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.steps and trainer.global_step % self.steps == 0 and between and not trainer.is_last_batch:
            trainer.save_checkpoint(self.folder / LAST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        done = trainer.current_epoch + 1
        due = done % self.epochs == 0 or done == trainer.max_epochs or self.steps or trainer.should_stop
        for name, wanted in ((BEST, self.best()), (LAST, due)):
            if wanted:
                self._between_epochs = True
                trainer.save_checkpoint(self.folder / name)
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
