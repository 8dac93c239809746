"""A finished run read back from its folder: its config, its data and the classifier as an epoch left it."""

from __future__ import annotations

from pathlib import Path

from lt_kernels.data import LongTailedData
from lt_kernels.heads.scale import has_cosines
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import BEST, CONFIG, LAST, RESULT, Which
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.recipes import read_config
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.checkpoint import read_checkpoint
from lt_kernels.train.run.generators import random_states, restore_random_states


def load_run(folder: str | Path, checkpoint: Which | None = None) -> tuple[TrainConfig, LongTailedData, Classifier]:
    """Return the config, the data set and the trained module, in evaluation mode and on the CPU, of a finished run.

    folder: what `lt-kernels train` or a comparison wrote, with config.yaml, last.ckpt and result.json. checkpoint: the
    last epoch's or the best one's; None is the one whose accuracies result.json has, the best where the run keeps it.
    The global generators are left as they were. Errors: ConfigError naming the folder and the file that is missing or
    does not fit, or a setting that cannot be used.
    """
    folder = Path(folder)
    for name in (CONFIG, RESULT, LAST):
        if not (folder / name).exists():
            raise ConfigError(f"folder must be that of a finished run, got {str(folder)!r}, which holds no {name}")
    config = read_config(folder / CONFIG)
    read_result(folder, config)
    if checkpoint == "best" and not config.keep_best:
        raise ConfigError(f"--checkpoint must be last for a run without keep_best, got best for {str(folder)!r}")
    chosen = BEST if config.keep_best else LAST
    data = load_data(config)
    before = random_states()
    try:
        module = build_module(config, data)
    finally:
        restore_random_states(before)
    fill(module, folder / (LAST if checkpoint == "last" else chosen), config, data)
    return config, data, module.eval()


def fill(module: Classifier, path: Path, config: TrainConfig, data: LongTailedData) -> None:
    """Give a classifier of a run's settings the state in one of its checkpoints.

    Errors: ConfigError naming the file.
    """
    checkpoint = read_checkpoint(path, config, data)
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"{str(path)!r} does not fit the settings beside it: {error}") from error


def add_teacher(module: Classifier, data: LongTailedData) -> None:
    """Have a classifier whose method names a teacher learn from it: the frozen model of a finished run on the same
    classes. Errors: ConfigError naming method_options.teacher.
    """
    folder = module.parts.teacher
    if not folder:
        return
    try:
        config, taught, teacher = load_run(Path(folder))
    except ConfigError as error:
        raise ConfigError(f"method_options.teacher must name a finished run: {error}") from error
    if taught.num_classes != data.num_classes or taught.train[0].shape[1:] != data.train[0].shape[1:]:
        raise ConfigError(f"method_options.teacher must name a run on {data.name}, got {folder!r} on {taught.name}")
    if not has_cosines(teacher.head):
        allowed = "a run whose method predicts cosines, such as gml"
        raise ConfigError(f"method_options.teacher must name {allowed}, got {folder!r} of the method {config.method}")
    module.learn_from(teacher.requires_grad_(False))
