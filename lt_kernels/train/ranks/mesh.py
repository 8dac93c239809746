"""How what is sharded lies on the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from lt_kernels.train.ranks.group import Ranks


def mesh_of(ranks: Ranks) -> DeviceMesh | None:
    """All processes in a row; None for one alone."""
    return None if ranks.world == 1 else init_device_mesh(device_type(), (ranks.world,))


def device_type() -> str:
    """What a run is computed on: not MPS, which the losses' float64 tables rule out."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Have each process hold a share of the network's parameters, gathered a unit at a time (FSDP2).

    Units are the parts of a network's sequences and lists, such as residual blocks and layers, and what is left.
    """
    for part in _units(network):
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _units(module: nn.Module) -> Iterator[nn.Module]:
    within = isinstance(module, (nn.Sequential, nn.ModuleList))
    for child in module.children():
        if within and not isinstance(child, nn.ModuleList):  # which has no forward pass to gather before
            yield from [child] if any(True for _ in child.parameters()) else []
        else:
            yield from _units(child)
