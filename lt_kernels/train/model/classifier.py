"""What is trained: a network and a head with the loss inside, as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lt_kernels.train.augment import augmentations
from lt_kernels.train.augment.mixing import cut_batch, mix_batch
from lt_kernels.train.augment.scenes import SCENE_AUGMENTATIONS, augment_scenes
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.methods.method import MethodParts
from lt_kernels.train.model.dealt import Dealt, clip_gradients, gathered, nothing
from lt_kernels.train.model.layout import put_together
from lt_kernels.train.model.optimizers import make_optimizer, make_schedule
from lt_kernels.train.model.parameters import frozen_parts, grouped


def rate_factor(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The share of the peak rate at step `step` of the `steps` steps of `epoch`, both from 0.

    Linear warm-up: (t + 1 / steps) / warmup_epochs with t = epoch + step / steps. Then cosine (1 + cos(pi t /
    epochs)) / 2, poly (1 - t / epochs)^poly_power, the factor of the last milestone passed, or 1.
    """
    time = epoch + step / steps
    if time < config.warmup_epochs:
        return warm_up(config, epoch, step, steps)
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * time / config.epochs)) / 2
    if config.schedule == "poly":
        return (1 - time / config.epochs) ** config.poly_power
    passed = [gamma for milestone, gamma in zip(config.milestones, config.gammas, strict=True) if epoch >= milestone]
    return passed[-1] if passed else 1.0


def warm_up(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The share of the rate that linear warm-up lets through at a step; 1 after it."""
    time = epoch + step / steps
    return 1.0 if time >= config.warmup_epochs else min(1.0, (time + 1 / steps) / config.warmup_epochs)


class Classifier(LightningModule):
    """Network, head and method of one run; knows no epoch but the settings that a callback last applied.

    A batch is (inputs [N, ...], target int64 [N], or [N, H, W] where each pixel has a class), or with `dealt` a part of
    one and the number of samples in the whole. `weight` is the per-class
    weight [C] that the epoch asks of the loss, `strength` the regularizer's factor. In a second stage only that stage's
    parameters have gradients, and the network is in evaluation mode.
    """

    def __init__(self, config: TrainConfig, network: nn.Module, parts: MethodParts) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.head = parts.head
        self.regularizer = parts.regularizer
        self.second_head = parts.second.head if parts.second is not None else None
        self.parts, self.strength, self.in_second = parts, 0.0, False
        self._teacher: tuple[nn.Module, ...] = ()  # a tuple: no submodule
        self.schedule: LRScheduler | None = None  # one of torch's, where the config names its class
        self._kept = frozen_parts(network) if config.freeze else []
        self._frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.dealt: Dealt | None = None  # how batches are dealt, where they are
        self.watch: Callable[[nn.Module, Tensor, Any], None] | None = None  # sees each batch's features and targets
        self.train()

    def learn_from(self, teacher: nn.Module) -> None:
        """Give every later loss the teacher's logits of the first view; the teacher is not part of the state."""
        self._teacher = (teacher,)

    def apply_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch: deferred weights, the regularizer's strength, and the stage."""
        if self.parts.weight is not None:
            self.head.loss.set_weight(self.parts.weight(epoch))
        if self.parts.strength is not None:
            self.strength = self.parts.strength(epoch)
        second = self.parts.second
        self.in_second = second is not None and epoch >= self.config.epochs
        if second is not None and self.in_second:
            self.requires_grad_(False)
            for parameter in second.parameters:
                parameter.requires_grad_(True)
            self.train(self.training)

    def apply_step(self, step: int) -> None:
        """Set what depends on the step, the number of steps that the optimiser has made: SphereFace's annealing."""
        if self.parts.annealing is not None:
            self.head.loss.set_annealing(self.parts.annealing(step))

    def train(self, mode: bool = True) -> Classifier:
        """As of any module, but a network, or what is frozen of it, that is not trained stays in evaluation mode."""
        super().train(mode)
        for part in [self.network] if self.in_second else self._kept:
            part.eval()
        return self

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate at step `step` of the `steps` steps of `epoch`, both from 0; a second stage has a cosine
        of its own.
        """
        second = self.parts.second
        if second is None or epoch < self.config.epochs:
            return self.config.lr * rate_factor(self.config, epoch, step, steps)
        time = (epoch - self.config.epochs + step / steps) / second.epochs
        return self.config.lr * second.rate * (1 + math.cos(math.pi * time)) / 2

    def rates(self, epoch: int, step: int, steps: int) -> list[float]:
        """The learning rate of each group of parameters: `rate` times its factor, or what a class of schedules says."""
        if self.schedule is not None and not (self.parts.second is not None and epoch >= self.config.epochs):
            return [rate * warm_up(self.config, epoch, step, steps) for rate in self.schedule.get_last_lr()]
        rate = self.rate(epoch, step, steps)
        return [rate * factor for factor in self._factors]

    @property
    def active_head(self) -> nn.Module:
        """The head of the present stage."""
        return self.second_head if self.in_second and self.second_head is not None else self.head

    def features(self, inputs: Tensor) -> Tensor:
        """Features [N, d]; where the network gives [N, d, H, W], those of each pixel, [N, H, W, d]."""
        features = self.network(inputs)
        return features.movedim(1, -1) if features.ndim > 2 else features

    def classify(self, features: Tensor) -> Tensor:
        """Logits, or cosines, [..., C] of features [..., d]."""
        if self.parts.readout is not None:
            return self.parts.readout(self.head, features)
        return self.active_head(features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, or cosines, [N, C], or of each pixel [N, H, W, C]."""
        return self.classify(self.features(inputs))

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> dict[str, Any]:
        """`loss`: what is minimised; `data_loss`: that of the batch, or of its part, without the regularizer, and
        `total` with it, for the record; `weight`: how much they count.
        """
        inputs, target = self._prepared(*batch[:2])
        taught = {"teacher": _logits(self._teacher[0], inputs[: len(batch[1])])} if self._teacher else {}
        features = self._features_of_part(inputs)
        if self.watch is not None:
            self.watch(self.active_head, features, target)
        if self.dealt is not None and self.dealt.gathers(self.active_head):
            features, target, taught = gathered(features, target, self.parts.views, taught)
        loss = self._loss(features, target, taught)
        total = loss
        if self.regularizer is not None and self.strength > 0:
            experts = self.parts.experts  # each has all classes
            weight = self.head.weight
            weights = weight.split(len(weight) // experts) if experts > 1 else [weight]  # sharded, there is one expert
            total = loss + self.strength * sum(map(self.regularizer, weights))
        record = {"data_loss": loss.detach(), "total": total.detach()}
        if self.dealt is None:
            return {"loss": total, "weight": len(batch[1]), **record}
        weight = self.dealt.weigh(self.active_head, target, batch[2])
        return {"loss": total * self.dealt.share(weight, batch[2]), "weight": weight, **record}

    def _features_of_part(self, inputs: Tensor) -> Tensor:
        """Features; where a part has no inputs, without a trace in the statistics of batch norm."""
        if len(inputs) or not self.training or self.config.sync_batch_norm:
            return self.features(inputs)
        self.network.eval()
        features = self.features(inputs)
        self.train()
        return features

    def _loss(self, features: Tensor, target: Any, taught: dict[str, Tensor]) -> Tensor:
        if self.dealt is not None and self.dealt.is_nothing(self.active_head, target):
            return nothing(features, self.active_head, target)
        return self.active_head(features, target, **taught)

    def _prepared(self, inputs: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Augmented inputs, view after view, scenes with their targets, or mixed inputs with the pair of targets."""
        config = self.config
        if config.augment in SCENE_AUGMENTATIONS:
            return augment_scenes(config.augment, inputs, target, config.augment_crop)
        if config.augment != "none" or self.parts.views > 1 or inputs.dtype == torch.uint8:
            later = config.augment if config.augment_views == "same" else config.augment_views
            names = [config.augment, *[later] * (self.parts.views - 1)]
            inputs = torch.cat([augmentations.augment(name, inputs, config.augment_options) for name in names])
        if self.in_second:
            return inputs, target
        if config.mixup_alpha > 0:
            return mix_batch(inputs, target, config.mixup_alpha)
        return cut_batch(inputs, target, config.cutmix_alpha) if config.cutmix_alpha > 0 else (inputs, target)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients those of the whole batch, and give the class weights unit norm where the method asks for
        it: before each step, as it was published.
        """
        if self.dealt is not None:
            self.dealt.complete(self.parameters())
        if self.parts.unit_rows:
            with torch.no_grad():
                self.head.weight.copy_(nn.functional.normalize(self.head.weight))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Scale all gradients down together where their norm is above the config's `clip`."""
        if self.config.clip > 0:
            clip_gradients([one for group in optimizer.param_groups for one in group["params"]], self.config.clip)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The config's optimizer over every parameter that any stage trains, and its schedule."""
        groups = self._groups()
        self._factors = [float(group["factor"]) for group in groups]
        optimizer = make_optimizer(self.config, groups)
        self.schedule = make_schedule(self.config, optimizer)
        return optimizer

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters that any stage trains, in groups of one learning rate and weight decay."""
        named = {name: parameter for name, parameter in self.named_parameters() if name not in self._frozen}
        return grouped(self.config, self.network, named)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have the settings of the epoch and the step, which are no part of the state, and read what earlier versions
        wrote: they kept class weights in the state, and a temperature without dimensions.
        """
        self.apply_epoch(int(checkpoint["epoch"]))
        self.apply_step(int(checkpoint["global_step"]))
        state, known = checkpoint["state_dict"], self.state_dict()
        for name in ("head.loss.weight", "head.loss.base.weight"):
            if self.parts.weight is not None and name not in known:
                state.pop(name, None)
        for optimizer in checkpoint.get("optimizer_states", ()):
            for moments in optimizer["state"].values():
                if isinstance(moved := moments.get("momentum_buffer"), Tensor) and moved.ndim == 0:
                    moments["momentum_buffer"] = moved.reshape(1)
        put_together(checkpoint, self, [one for group in self._groups() for one in group["params"]])


@torch.no_grad()
def _logits(teacher: nn.Module, inputs: Tensor) -> Tensor:
    return teacher.to(inputs.device)(inputs)  # the trainer moves what is trained alone
