"""How the trainer holds a model in several processes: DDP, or FSDP2 for the network, and a head that may be sharded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lt_kernels.core import private
from lt_kernels.core.checks import is_dtensor
from lt_kernels.ops.ranks.placements import local
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.model.layout import take_apart
from lt_kernels.train.ranks.group import Ranks
from lt_kernels.train.ranks.mesh import device_type


class RankStrategy(DDPStrategy):
    """DDP, which leaves out what is sharded; or no wrapper at all, around a network that FSDP2 has sharded.

    Checkpoints are the trainer's: one file of the first process, and beside it the shards of all where there are some.
    """

    def __init__(self, config: TrainConfig, unused: bool) -> None:
        """unused: whether some parameters have no gradient in a stage of training."""
        super().__init__(find_unused_parameters=unused, timeout=timedelta(seconds=config.timeout))
        self._sharded_network = config.strategy == "fsdp"

    def configure_ddp(self) -> None:
        """Wrap the module where its network is not sharded."""
        module: Any = self.model
        if self._sharded_network:
            return
        named = [*module.named_parameters(), *module.named_buffers()]
        left = [name for name, value in named if is_dtensor(value)]
        if left:  # what a sharded head has beside its weights is the same everywhere, and its gradient too
            left = [name for name, _ in named if name.startswith("head.")]
        private.left_to_itself(module, left)
        super().configure_ddp()

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within, gradients are added up and not averaged over the processes."""
        parts = [part for part in self.lightning_module.modules() if isinstance(part, FSDPModule)]  # type: ignore[union-attr]
        with super().block_backward_sync():
            for part in parts:
                part.set_requires_gradient_sync(False, recurse=False)
            try:
                yield
            finally:
                for part in parts:
                    part.set_requires_gradient_sync(True, recurse=False)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the shards, then the file that names them."""
        super().save_checkpoint(take_apart(checkpoint, Path(filepath).parent), filepath, storage_options)


class RankScaler(torch.amp.GradScaler):
    """A scaler of losses in float16 that takes shares of tensors too, and skips a step on every rank or on none.

    Torch's own takes no DTensors beside plain tensors, and asks no other rank; this overrides the one part of it that
    its own for sharded models overrides.
    """

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool) -> Any:
        found = found_inf.clone()
        for group in optimizer.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    own = local(one.grad)
                    found += (~own.isfinite()).any()
                    own *= inv_scale
        if dist.is_initialized():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return {found.device: found}


def placed(config: TrainConfig, ranks: Ranks, unused: bool) -> dict[str, Any]:
    """The trainer's arguments that say where a run is computed; `unused` as for `RankStrategy`."""
    arguments: dict[str, Any] = {
        "accelerator": "gpu" if device_type() == "cuda" else "cpu",
        "devices": ranks.devices,
        "accumulate_grad_batches": config.accumulate,
    }
    if ranks.world > 1:
        arguments |= {"num_nodes": ranks.world // ranks.devices, "strategy": RankStrategy(config, unused)}
    return arguments


def precision_of(config: TrainConfig) -> MixedPrecision | Precision:
    """Float32, or autocast to bfloat16 or to float16, for which the trainer by itself has nothing on a CPU."""
    if config.precision == "32":
        return Precision()
    if config.precision == "bf16":
        return MixedPrecision("bf16-mixed", device_type())
    return MixedPrecision("16-mixed", device_type(), RankScaler(device_type()))
