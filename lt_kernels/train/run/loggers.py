"""A logger of Lightning's by its class path: it gets each row of a run's record, beside the run's own files."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger

from lt_kernels.system import classes
from lt_kernels.system.storage import read_regular, write_whole
from lt_kernels.train.config import LOGGERS, TrainConfig
from lt_kernels.train.errors import ConfigError, RunFailed
from lt_kernels.train.files import LOGGED, TENSORBOARD
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.run.generators import random_states, restore_random_states
from lt_kernels.train.run.logs import COLUMNS, EpochLog
from lt_kernels.train.values import title

NUMBERS = COLUMNS[2:]  # a logger has a step of its own, which is the epoch here
MOST = 2**16  # bytes of LOGGED


def make_logger(config: TrainConfig, folder: Path) -> Logger | None:
    """The logger that a config names; where no `save_dir` is given, the class's own is within the run's folder, or it.

    Nothing is written yet.

    Errors: ConfigError naming the setting, or the library that is missing.
    """
    if config.logger == "none":
        return None
    spec = config.logger
    if isinstance(spec, str):
        spec = {"class_path": f"lightning.pytorch.loggers.{LOGGERS[spec]}", "init_args": {}}
    path, arguments = spec["class_path"], dict(spec["init_args"])
    try:
        place = inspect.signature(classes.found("logger", path)).parameters.get("save_dir")
        if place is not None:
            own = place.default if isinstance(place.default, str) else "."  # as MLflow's "./mlruns"
            arguments.setdefault("save_dir", str(folder / own))
        made = classes.make("logger", {"class_path": path, "init_args": arguments}, Logger)
    except (ImportError, MisconfigurationException) as error:
        raise ConfigError(f"logger {path}: {_line(error)}") from error
    except ValueError as error:
        raise ConfigError(_line(error)) from error
    taken = [place.resolve() for place in (folder, folder / TENSORBOARD)]
    if made.log_dir is not None and Path(made.log_dir).resolve() in taken:
        raise ConfigError(f"logger must not write where the run's own record is, got {made.log_dir!r}")
    return made


class LoggerRows(Callback):
    """Hand the settings and every row of `log` to a logger, so that each of its records has each epoch once.

    A run that goes on may have told the same record more epochs than its checkpoint has: which record, and how many, is
    in the file LOGGED. To any other record, and to a CSVLogger, which always begins a new file, the rows of the
    checkpoint are told again. The generators are left as they were: a logger may draw a name.
    """

    def __init__(self, logger: Logger, config: TrainConfig, log: EpochLog) -> None:
        self.logger, self.config, self.source = logger, config, log  # `log` is a method of callbacks
        self.path, self.told, self.open = log.folder / LOGGED, 0, False

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Within, a logger's errors are RunFailed: the run itself is good, and can go on with another logger."""
        states = random_states()
        try:
            yield
        except Exception as error:
            raise RunFailed(f"logger {title(self.config.logger)}: {type(error).__name__}: {_line(error)}") from error
        finally:
            restore_random_states(states)

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Tell the settings, and the rows before that this record has not."""
        self.open = True
        with self._apart():
            self.logger.log_hyperparams(self.config.settings())
            named = [str(self.logger.name), str(self.logger.version)]
        self.record = [self.config.as_dict()["logger"], *named]
        anew = not trainer.global_step or isinstance(self.logger, CSVLogger)
        self.told = 0 if anew else self._told()
        for row in self.source.rows:
            self._tell(row)

    def _told(self) -> int:
        """How many epochs the record has."""
        if not self.path.exists():
            return 0
        try:
            before = json.loads(read_regular(self.path, MOST))
            return int(before["epochs"]) if before["record"] == self.record else 0
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{str(self.path)!r} must be as a run with a logger wrote it: remove it") from error

    def _tell(self, row: dict[str, float]) -> None:
        epoch = int(row["epoch"])
        if epoch <= self.told:
            return
        with self._apart():
            self.logger.log_metrics({name: row[name] for name in NUMBERS if name in row}, step=epoch)
            self.logger.save()  # else a run that is killed has told what nobody has
        self.told = epoch
        write_whole(self.path, json.dumps({"record": self.record, "epochs": epoch}))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Tell the epoch's row."""
        self._tell(self.source.rows[-1])

    def on_exception(self, trainer: Trainer, pl_module: Classifier, exception: BaseException) -> None:
        """End the record of a run that is cut short; what cut it short is what is said, and not what comes of it."""
        with contextlib.suppress(RunFailed):
            self._end("failed")

    def teardown(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """End the record."""
        self._end("success")

    def _end(self, status: str) -> None:
        if self.open:
            self.open = False
            with self._apart():
                self.logger.finalize(status)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
