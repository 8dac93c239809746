"""One run from its config to its result: data, network, method, trainer, files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from rich.console import Console

from lt_kernels.data import DealtLoader, LongTailedData, ResumableLoader
from lt_kernels.data.samplers import Order, Staged, make_order
from lt_kernels.system import interrupts
from lt_kernels.system.storage import write_whole
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import BEST, LAST, RESULT
from lt_kernels.train.files.folder import begin_run, claimed, noting_failure, prepare_run, read_result
from lt_kernels.train.methods.build import total_epochs
from lt_kernels.train.model import readings
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.scores import judge
from lt_kernels.train.ranks.group import Ranks, noticing_loss, together
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.checkpoint import ExactResume, SealedCheckpointIO, saved_for
from lt_kernels.train.run.checks import check_stopping
from lt_kernels.train.run.components import ComponentLog
from lt_kernels.train.run.loading import add_teacher, fill
from lt_kernels.train.run.loggers import LoggerRows, make_logger
from lt_kernels.train.run.logs import EpochLog
from lt_kernels.train.run.parts import PartLog
from lt_kernels.train.run.progress import EpochBar
from lt_kernels.train.run.schedule import ScheduleSteps
from lt_kernels.train.run.stopping import Stopping
from lt_kernels.train.run.strategy import placed, precision_of


def train_run(
    config: TrainConfig, folder: Path, resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Train one model in `folder` and return what `result.json` then holds; with `resume` go on from `last.ckpt`, if
    there is one.

    Same config, same machine, same number of threads and of processes: same bits, whether or not the run was killed in
    between. In processes that torchrun has started each calls this, and the first one alone writes.
    Errors: ConfigError when the folder holds a run (without resume) or a run of other settings (with it), or a
    setting cannot be used; RunFailed where another process is lost; ToldElsewhere where another one raises these.
    """
    with interrupts.raised(), together(config) as ranks:
        return _train(config, folder, resume, console, ranks)


def _train(config: TrainConfig, folder: Path, resume: bool, console: Console | None, ranks: Ranks) -> dict[str, Any]:
    def begun() -> dict[str, Any] | None:
        prepare_run(config, folder, resume)
        return read_result(folder, config)

    done = ranks.lead(begun)
    if done is not None:
        return done
    with contextlib.ExitStack() as stack:
        ranks.lead(lambda: stack.enter_context(claimed(folder)) if ranks.first else None)
        ranks.lead(lambda: prepare_run(config, folder, resume))  # again, now that nobody else writes there
        if config.threads:
            torch.set_num_threads(config.threads)
        stack.enter_context(deterministic())
        logger, module, order, log = ranks.alike(lambda: _made(config, folder, ranks))
        saved = ranks.alike(lambda: saved_for(config, log.data, folder, ranks))
        ranks.lead(lambda: begin_run(config, folder))  # not before the settings are known to be good
        with noting_failure(folder), noticing_loss(config):
            stopping = fit(config, module, log, order, folder, console if ranks.first else None, saved, logger)
            about = {"stopping": stopping.about(config.keep_best)} if config.stops else {}
            result = summarize(config, module, log) | about
        ranks.lead(lambda: write_whole(folder / RESULT, json.dumps(result, indent=1)))
    return result


def _made(config: TrainConfig, folder: Path, ranks: Ranks) -> tuple[Logger | None, Classifier, Order, EpochLog]:
    """The logger, the classifier, the order of its samples and the record of a run."""
    check_stopping(config)
    logger = make_logger(config, folder) if ranks.first else None
    data = load_data(config)
    module = build_module(config, data, ranks)
    add_teacher(module, data)
    module.configure_optimizers()  # what does not fit is said before anything is written
    return logger, module, order_of(module, data), EpochLog(folder, data, config.validate_every, ranks)


def fit(
    config: TrainConfig,
    module: Classifier,
    log: EpochLog,
    order: Order,
    folder: Path,
    console: Console | None,
    saved: SealedCheckpointIO | None = None,
    logger: Logger | None = None,
) -> Stopping:
    """Train to the last epoch, from `last.ckpt` where there is one, and leave the module as it or the epoch that is
    kept left it.
    """
    stopping = Stopping(log, config.patience)
    last = folder / LAST
    with quiet_trainer():
        trainer = Trainer(
            max_epochs=total_epochs(config.method, config.epochs, config.method_options),
            plugins=[saved or SealedCheckpointIO(config, log.data), precision_of(config)],
            callbacks=_callbacks(config, log, stopping, console, logger),
            limit_train_batches=config.epoch_steps * config.accumulate or 1.0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **placed(config, log.ranks, unused=module.parts.second is not None),
        )
        loader = loader_of(config, log.data, order, log.ranks)
        trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if config.keep_best:
        fill(module, folder / BEST, config, log.data)
    return stopping


def _callbacks(
    config: TrainConfig, log: EpochLog, stopping: Stopping, console: Console | None, logger: Logger | None
) -> list[Callback]:
    """In order: what acts, what records it, what saves both, and the logger, whose failure costs no checkpoint."""
    found: list[Callback] = [EpochSettings(log.ranks), Closing(log.data), log]
    found += [ScheduleSteps(log)] if not isinstance(config.schedule, str) else []
    found += [EpochBar(log, console)] if console is not None else []
    found += [ComponentLog(log.folder, log.data), PartLog(log.folder, log.data)] if config.record else []
    found += [stopping] if config.stops else []
    found += [ExactResume(log.folder, config, log.ranks, lambda: config.keep_best and stopping.improved)]
    return found if logger is None else [*found, LoggerRows(logger, config, log)]


def loader_of(config: TrainConfig, data: LongTailedData, order: Order, ranks: Ranks) -> ResumableLoader:
    """The batches of one process, or this one's parts of them."""
    if ranks.world * config.accumulate == 1:
        return ResumableLoader(data.train, config.batch_size, order=order)
    sizes = {"rank": ranks.rank, "world_size": ranks.world, "micro_batches": config.accumulate}
    return DealtLoader(data.train, config.batch_size, order=order, **sizes)


class EpochSettings(Callback):
    """Apply what depends on the epoch, deferred weights and the regularizer's strength, and what depends on the step,
    the learning rate and SphereFace's annealing. After an epoch the first process's batch norms are those of all.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Apply the present epoch's settings: a run resumed within an epoch sees no start of it."""
        interrupts.take_back()
        pl_module.apply_epoch(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Apply the epoch's settings; a second stage begins without the first one's momentum."""
        pl_module.apply_epoch(trainer.current_epoch)
        if pl_module.in_second and trainer.current_epoch == pl_module.config.epochs:
            trainer.optimizers[0].state.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Set what depends on the step."""
        parts = trainer.accumulate_grad_batches
        pl_module.apply_step(trainer.global_step)
        steps = int(trainer.num_training_batches) // parts
        rates = pl_module.rates(trainer.current_epoch, batch_idx // parts, steps)
        for group, rate in zip(trainer.optimizers[0].param_groups, rates, strict=True):
            group["lr"] = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Give all processes the running statistics of the first one, which are those that are kept."""
        if self.ranks.world > 1:
            for value in pl_module.network.buffers():
                dist.broadcast(value, src=0)


class Closing(Callback):
    """At the end of the last epoch, do what the method does to the trained head with the training set's features.

    The log after it has the accuracy that this gives, and the checkpoint the head.
    """

    def __init__(self, data: LongTailedData) -> None:
        self.train = data.train

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Features are those of evaluation mode, without augmentation."""
        if pl_module.parts.closing is None or trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            return
        was_training = pl_module.training
        pl_module.eval()
        places = torch.arange(len(self.train[1])).split(readings.at_once(self.train[1]))
        pl_module.parts.closing(pl_module.head, (readings.features_of(pl_module, self.train, part) for part in places))
        pl_module.train(was_training)


def order_of(module: Classifier, data: LongTailedData) -> Order:
    """The order of the training samples: the sampler's, and a second stage's after it."""
    config, second, target = module.config, module.parts.second, data.train[1]
    for sampler in (config.sampler, second.sampler if second is not None else config.sampler):
        if target.ndim > 1 and sampler != "instance":
            raise ConfigError(f"sampler must be instance for {data.name}, a scene has no one class, got {sampler!r}")
    first = make_order(config.sampler, target, config.seed, config.epochs)
    if second is None:
        return first
    return Staged(first, make_order(second.sampler, target, config.seed, second.epochs), config.epochs)


def summarize(config: TrainConfig, module: Classifier, log: EpochLog) -> dict[str, Any]:
    """What a run came to, as plain numbers: accuracies in percent after the last epoch, or the one that is kept."""
    data = log.data
    final = judge(module, data, log.ranks)
    counts, grouped = data.units
    held = {} if data.validation is None else {"validation": len(data.validation[1])}
    return {
        "config": config.as_dict(),
        "accuracy": final.groups,
        "per_class": final.per_class,
        **({} if final.per_class_iou is None else {"per_class_iou": final.per_class_iou}),
        "class_counts": data.class_counts.tolist(),
        "units": {"counts": counts, "groups": grouped},
        "samples": {"train": len(data.train[1]), "test": len(data.test[1]), **held},
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in log.rows),
        "seconds": sum(row["seconds"] for row in log.rows),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **({} if log.ranks.world == 1 else {"processes": log.ranks.world}),
    }


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for deterministic algorithms, and put its settings back after."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose by the stream
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a memset for every new tensor, and no run reads what it did not write
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


@contextlib.contextmanager
def quiet_trainer() -> Iterator[None]:
    """Keep the trainer's advice (devices found, tips, loader workers) out of the run's output; errors come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        logger.setLevel(level)
