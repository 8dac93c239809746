"""A checkpoint of any layout for the module of another: weights and momentum, whole or shared out among the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lt_kernels.core.checks import is_dtensor
from lt_kernels.train.files.shards import read_shards, write_shards

SHARDS = "shards"  # where a checkpoint says what lies beside it


def take_apart(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The checkpoint without the tensors that are sharded, which are written beside it: every rank calls this."""
    apart: dict[str, Tensor] = {}
    state = _without(checkpoint["state_dict"], "state", apart)
    optimizers = [
        {**one, "state": {key: _without(value, f"optimizer.{key}", apart) for key, value in one["state"].items()}}
        for one in checkpoint["optimizer_states"]
    ]
    if not apart:
        return checkpoint
    about = {**write_shards(apart, folder), "names": sorted(apart)}
    return {**checkpoint, "state_dict": state, "optimizer_states": optimizers, SHARDS: about}


def _without(values: dict[Any, Any], prefix: str, apart: dict[str, Tensor]) -> dict[Any, Any]:
    apart.update({f"{prefix}.{key}": value for key, value in values.items() if is_dtensor(value)})
    return {key: value for key, value in values.items() if not is_dtensor(value)}


def put_together(checkpoint: dict[str, Any], module: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Give a checkpoint's weights, and what the optimizer keeps of each, the layout of `module`, in place, and read
    what was written beside it, in the folder that `checkpoint["shards"]["beside"]` names.

    parameters: those of the optimiser, in its order. What it keeps of a parameter (SGD momentum, Adam two moments) has
    the parameter's shape and layout, or is a number.
    """
    like = {f"state.{name}": value for name, value in module.state_dict().items()}
    of_each = {f"optimizer.{index}": value for index, value in enumerate(parameters)}
    about = checkpoint.pop(SHARDS, None)
    if about is not None:
        known = {name: like.get(name, of_each.get(name.rpartition(".")[0])) for name in about["names"]}
        read = {name: torch.zeros_like(value) for name, value in known.items() if value is not None}
        read_shards(about, Path(about["beside"]), read)
        for name, value in read.items():
            kind, _, rest = name.partition(".")
            if kind == "state":
                checkpoint["state_dict"][rest] = value
            else:
                index, _, key = rest.partition(".")
                checkpoint["optimizer_states"][0]["state"].setdefault(int(index), {})[key] = value
    _fit(checkpoint["state_dict"], {key: like.get(f"state.{key}") for key in checkpoint["state_dict"]})
    for one in checkpoint.get("optimizer_states", ()):
        for index, values in one["state"].items():
            _fit(values, dict.fromkeys(values, of_each.get(f"optimizer.{index}")))


def _fit(values: dict[Any, Any], like: dict[Any, Tensor | None]) -> None:
    """Shard whole tensors where the module's of the same shape are."""
    for key, value in values.items():
        target = like[key]
        if target is None or not is_dtensor(target) or not isinstance(value, Tensor) or is_dtensor(value):
            continue
        if value.shape == target.shape:
            values[key] = sharded_as(value, target)


def sharded_as(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on every rank, as shares laid out as `like`'s."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
