"""The optimizer of a run, SGD or a class by its path, and a schedule of torch's for its learning rates."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lt_kernels.system import classes
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError


def make_optimizer(config: TrainConfig, parts: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of groups of parameters, those of `parameters.grouped`: by default SGD, with weight decay as the
    papers have it. Errors: ConfigError naming the setting.
    """
    groups = [
        {"params": one["params"], "weight_decay": config.weight_decay if one["decays"] else 0.0, **_rate(config, one)}
        for one in parts
    ]
    spec = config.optimizer
    if isinstance(spec, str):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    try:
        known = inspect.signature(classes.found("optimizer", spec["class_path"])).parameters
        if "weight_decay" not in known:
            if config.weight_decay:
                raise ValueError(f"weight_decay must be 0 for {spec['class_path']}, got {config.weight_decay}")
            groups = [{key: value for key, value in one.items() if key != "weight_decay"} for one in groups]
        arguments = {**spec["init_args"], **({"lr": config.lr} if "lr" in known else {})}
        made = {"class_path": spec["class_path"], "init_args": arguments}
        return classes.make("optimizer", made, torch.optim.Optimizer, groups)
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _rate(config: TrainConfig, part: dict[str, Any]) -> dict[str, float]:
    return {} if part["factor"] == 1 else {"lr": config.lr * part["factor"]}


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    """The schedule of an optimizer, where it is a class by its path. Errors: ConfigError naming the setting."""
    spec = config.schedule
    if isinstance(spec, str):
        return None
    before = [group["lr"] for group in optimizer.param_groups]
    try:
        made = classes.make("schedule", spec, LRScheduler, optimizer)
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if isinstance(made, ReduceLROnPlateau) and config.schedule_interval == "step":
        raise ConfigError("schedule_interval must be epoch for ReduceLROnPlateau, got 'step'")
    after = made.get_last_lr()
    if any(abs(a * before[0] - b * after[0]) > 1e-9 * abs(b * after[0]) for a, b in zip(after, before, strict=True)):
        what = "a schedule that keeps the ratios of the rates, as lr_factors and layer_decay ask for"
        raise ConfigError(f"schedule must be {what}, got {spec['class_path']}, which sets {after}")
    return made
