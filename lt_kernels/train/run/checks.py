"""What must fit before a run begins: mixing, augmentations, pixels and a teacher. Errors name the setting."""

from __future__ import annotations

import torch

from lt_kernels.data import LongTailedData
from lt_kernels.data.base import IGNORED
from lt_kernels.losses.base import Loss
from lt_kernels.train.augment.augmentations import AUGMENTATIONS, augment
from lt_kernels.train.augment.library import PREFIX
from lt_kernels.train.augment.scenes import SCENE_AUGMENTATIONS
from lt_kernels.train.config import TrainConfig, unknown_name
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import find_method
from lt_kernels.train.ranks.group import Ranks


def check_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """What is left out, or needs a GPU, in several processes, and a batch that has a sample for each of its parts."""
    parts = ranks.world * config.accumulate
    if config.batch_size < parts:
        what = f"{ranks.world} processes and {config.accumulate} micro-batches"
        raise ConfigError(f"batch_size must be at least {parts}, for {what}, got {config.batch_size}")
    if config.record and parts > 1:
        raise ConfigError("record must be false with several processes or accumulate above 1, got true")
    if config.sync_batch_norm and ranks.world > 1 and not torch.cuda.is_available():
        raise ConfigError("sync_batch_norm must be false without GPUs, for which torch has it alone, got true")
    if config.keep_best and ranks.world > 1 and "sharded" in (config.head, {"fsdp": "sharded"}.get(config.strategy)):
        raise ConfigError("keep_best must be false where processes hold shares of the network or the head, got true")


def check_stopping(config: TrainConfig) -> None:
    """A method that goes on after its last epoch, with a second stage or the head, has no epoch to be stopped at."""
    method = find_method(config.method)
    if config.stops and (method.second is not None or method.closing is not None):
        key = "patience" if config.patience else "keep_best"
        raise ConfigError(
            f"{key} must be left out with the method {config.method}, which needs its last epoch, got "
            f"{getattr(config, key)}"
        )


def check_mixing(config: TrainConfig, data: LongTailedData) -> None:
    """MixUp and CutMix are for images, and for methods that have a form for two targets."""
    method = find_method(config.method)
    for key in ("mixup_alpha", "cutmix_alpha"):
        value = getattr(config, key)
        if value > 0 and (data.input_kind != "image" or not method.mixup or method.views > 1):
            why = f"0 for {data.name}" if data.input_kind != "image" else f"0 for the method {config.method}"
            raise ConfigError(f"{key} must be {why}, got {value}")


def check_augmentations(config: TrainConfig, data: LongTailedData) -> None:
    """Try both on one sample: a name that does not fit must not wait for the first batch. Nothing is drawn for it."""
    if config.augment_options and not config.augment.startswith(PREFIX):
        raise ConfigError(
            f"augment_options must be left out with augment: {config.augment}, which has none, got "
            f"{dict(config.augment_options)}"
        )
    if data.input_kind == "scene":
        return _check_scenes(config, data)
    if config.augment_crop:
        raise ConfigError(f"augment_crop must be 0 for {data.name}, which has no scenes, got {config.augment_crop}")
    before = torch.get_rng_state()
    for key in ("augment", "augment_views"):
        name = getattr(config, key)
        if key == "augment" and name.startswith(PREFIX):
            _try(key, name, torch.zeros(1, *data.train[0].shape[1:], dtype=data.train[0].dtype), config, data)
        elif name not in AUGMENTATIONS and (key, name) != ("augment_views", "same"):
            raise unknown_name(key, name, [*AUGMENTATIONS, f"{PREFIX}NAME"] if key == "augment" else AUGMENTATIONS)
        elif name != "same" and isinstance(data.train[0], torch.Tensor) and len(data.train[0]):
            _try(key, name, data.train[0][:1], config, data)
    torch.set_rng_state(before)
    return None


def _try(key: str, name: str, sample: torch.Tensor, config: TrainConfig, data: LongTailedData) -> None:
    try:
        augment(name, sample, config.augment_options)
    except Exception as error:  # kornia's own checks are of many kinds
        if not name.startswith(PREFIX) and not isinstance(error, ValueError):
            raise
        raise ConfigError(f"{key} {name!r} does not fit the inputs of {data.name}: {error}") from error


def _check_scenes(config: TrainConfig, data: LongTailedData) -> None:
    """Where pixels have classes, the augmentation is one that moves them too."""
    if config.augment != "none" and config.augment not in SCENE_AUGMENTATIONS:
        allowed = f"none or {', '.join(SCENE_AUGMENTATIONS)} for {data.name}, any other would leave the targets"
        raise ConfigError(f"augment must be {allowed}, got {config.augment!r}")
    if config.augment_views != "same":
        raise ConfigError(f"augment_views must be same for {data.name}, got {config.augment_views!r}")
    if config.augment_crop and config.augment == "none":
        raise ConfigError(f"augment_crop must be 0 where augment is none, got {config.augment_crop}")


def check_pixels(config: TrainConfig, data: LongTailedData, head: torch.nn.Module) -> None:
    """Where pixels have classes, and some none, the loss leaves ignored targets out."""
    if data.input_kind != "scene":
        return
    loss = getattr(head, "loss", None)
    alike = isinstance(loss, Loss) and not (loss.needs_logits or loss.needs_features) and loss.ignore_index == IGNORED
    if not alike:
        raise ConfigError(f"method must have a loss that ignores pixels for {data.name}, got {config.method!r}")
