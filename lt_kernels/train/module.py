"""What is trained: a network and a head with the loss inside, as a Lightning module."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lt_kernels.train.config import TrainConfig
from lt_kernels.train.methods import MethodParts
from lt_kernels.train.mixing import mix_batch


class Classifier(LightningModule):
    """Network, head and method of one run; knows no epoch but the settings that a callback last applied.

    A batch is (inputs [N, ...], target int64 [N]). `weight` is the per-class weight [C] that the epoch asks of the
    loss, `strength` the regularizer's factor.
    """

    def __init__(self, config: TrainConfig, network: nn.Module, parts: MethodParts) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.head = parts.head
        self.regularizer = parts.regularizer
        self._weight_of_epoch, self._strength_of_epoch = parts.weight, parts.strength
        self.strength = 0.0

    def apply_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch: deferred weights and the regularizer's strength."""
        if self._weight_of_epoch is not None:
            self.head.loss.set_weight(self._weight_of_epoch(epoch))
        if self._strength_of_epoch is not None:
            self.strength = self._strength_of_epoch(epoch)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, or cosines, [N, C]."""
        return self.head(self.network(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """`loss`: what is minimised; `data_loss`: the part of it without the regularizer, for the record."""
        inputs, target = batch
        if self.config.mixup_alpha > 0:
            inputs, target = mix_batch(inputs, target, self.config.mixup_alpha)
        loss = self.head(self.network(inputs), target)
        total = loss
        if self.regularizer is not None and self.strength > 0:
            total = loss + self.strength * self.regularizer(self.head.weight)
        return {"loss": total, "data_loss": loss.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over every parameter, weight decay included, as the papers have it."""
        config = self.config
        return torch.optim.SGD(
            self.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have the epoch's weight buffer before the weights are loaded: it is part of the state, or absent, by the
        epoch.
        """
        self.apply_epoch(int(checkpoint["epoch"]))


@torch.inference_mode()
def predict(module: Classifier, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    """The class with the largest logit (or cosine) of each row, int64 [N], on the CPU."""
    was_training = module.training
    module.eval()
    rows = [module(part.to(module.device)).argmax(dim=1).cpu() for part in inputs.split(batch_size)]
    module.train(was_training)
    return torch.cat(rows)
