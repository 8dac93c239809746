"""A finished run read back from its folder: its config, its data and the classifier as the last epoch left it."""

from __future__ import annotations

from pathlib import Path

from lt_kernels.data import LongTailedData
from lt_kernels.train.checkpoint import random_states, read_checkpoint, restore_random_states
from lt_kernels.train.config import ConfigError, TrainConfig, read_config
from lt_kernels.train.files import CONFIG, LAST, RESULT
from lt_kernels.train.files.folder import read_result
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.run import build_module, load_data


def load_run(folder: str | Path) -> tuple[TrainConfig, LongTailedData, Classifier]:
    """Return the config, the data set and the trained module, in evaluation mode and on the CPU, of a finished run.

    folder: what `lt-kernels train` or a comparison wrote, with config.yaml, last.ckpt and result.json. The global
    generators are left as they were. Errors: ConfigError naming the folder and the file that is missing or does not
    fit, or a setting that cannot be used.
    """
    folder = Path(folder)
    for name in (CONFIG, RESULT, LAST):
        if not (folder / name).exists():
            raise ConfigError(f"folder must be that of a finished run, got {str(folder)!r}, which holds no {name}")
    config = read_config(folder / CONFIG)
    read_result(folder, config)
    data = load_data(config)
    before = random_states()
    try:
        module = build_module(config, data)
    finally:
        restore_random_states(before)
    checkpoint = read_checkpoint(folder / LAST, config, data)
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"{str(folder / LAST)!r} does not fit the settings beside it: {error}") from error
    return config, data, module.eval()
