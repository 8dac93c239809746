"""A network of the user's own, by its class path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData
from lt_kernels.system import classes
from lt_kernels.train.model.wrappers import Pixels


def own_network(
    spec: Mapping[str, Any], data: LongTailedData, out_features: int | None = None, **others: Any
) -> nn.Module:
    """The network that {class_path, init_args} stands for, with attribute `out_features`, the number of its features.

    That is what is stated, or else what comes out for one training input. Where the data name their pixels' mean and
    deviation, the network gets pixels less the mean, divided by the deviation. Errors: ValueError naming the setting.
    """
    for name in others:
        allowed = "out_features alone where network is a class, whose arguments are network.init_args"
        raise ValueError(f"network_options must hold {allowed}, got {name} (--set network_options={{}} empties them)")
    network = classes.make("network", spec, nn.Module)
    try:
        network.out_features = 0  # until it is known
    except AttributeError as error:
        raise ValueError(f"network must let its attribute out_features be set: {error}") from error
    whole = Pixels(network, data.pixel_mean, data.pixel_deviation) if data.pixel_mean else network
    found = _found(whole, data) if out_features is None else checks.whole("out_features", out_features)
    network.out_features = whole.out_features = found
    return whole


def _found(network: nn.Module, data: LongTailedData) -> int:
    """How many features there are, by one input in evaluation mode; nothing is drawn for it."""
    sample = data.train[0].index_select(0, torch.zeros(1, dtype=torch.int64))
    was_training = network.training
    network.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            features = network(sample)
        except Exception as error:  # of what others have written
            what = f"inputs {list(sample.shape)} of {sample.dtype}"
            raise ValueError(
                f"network must take {what}, as {data.name} has them: {type(error).__name__}: {error}"
            ) from error
    network.train(was_training)
    wanted = (4, 1, *sample.shape[2:]) if data.input_kind == "scene" else (2, 1)
    shape = list(features.shape) if isinstance(features, Tensor) else []
    if len(shape) != wanted[0] or (shape[0], *shape[2:]) != wanted[1:]:
        shapes = "[N, d, H, W]" if data.input_kind == "scene" else "[N, d]"
        got = shape if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"network must give features {shapes}, a tensor; for one input it gives {got}")
    return shape[1]
