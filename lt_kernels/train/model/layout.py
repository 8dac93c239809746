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
MOMENTUM = "momentum_buffer"


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
    """Give a checkpoint's weights and momentum the layout of `module`, in place, and read what was written beside it,
    in the folder that `checkpoint["shards"]["beside"]` names.

    parameters: those of the optimiser, in its order, which is the one that the momentum has.
    """
    like = {f"state.{name}": value for name, value in module.state_dict().items()}
    momentum = {f"optimizer.{index}.{MOMENTUM}": value for index, value in enumerate(parameters)}
    about = checkpoint.pop(SHARDS, None)
    if about is not None:
        known = {**like, **momentum}
        read = {name: torch.zeros_like(known[name]) for name in about["names"] if name in known}
        read_shards(about, Path(about["beside"]), read)
        for name, value in read.items():
            kind, _, rest = name.partition(".")
            if kind == "state":
                checkpoint["state_dict"][rest] = value
            else:
                index, _, key = rest.partition(".")
                checkpoint["optimizer_states"][0]["state"].setdefault(int(index), {})[key] = value
    _fit(checkpoint["state_dict"], "state.{}", like)
    for one in checkpoint.get("optimizer_states", ()):
        for index, values in one["state"].items():
            _fit(values, f"optimizer.{index}.{{}}", momentum)


def _fit(values: dict[Any, Any], form: str, like: dict[str, Tensor]) -> None:
    """Shard whole tensors where the module's are."""
    for key, value in values.items():
        target = like.get(form.format(key))
        if target is not None and is_dtensor(target) and not is_dtensor(value):
            values[key] = sharded_as(value, target)


def sharded_as(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on every rank, as shares laid out as `like`'s."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
