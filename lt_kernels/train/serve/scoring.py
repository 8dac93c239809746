"""From inputs to logits or probabilities, as a finished run predicts, under the class prior that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_kernels.data import LongTailedData
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods import stages
from lt_kernels.train.methods.build import find_method
from lt_kernels.train.model import readings
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.shift.evaluate import held_prior, holds

# Class weights of another length than those that were trained, or others.
RANKED = (stages.normalized, stages.rescaled, stages.nearest_mean)


class Standardized(nn.Module):
    """Bytes 0..255, or floats in 0..1, as numbers of the mean and deviation that a data set gives its inputs."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, pixels: Tensor) -> Tensor:
        levels = pixels if pixels.is_floating_point() else pixels.float() / 255
        return (levels - self.mean) / self.deviation


class Scorer(nn.Module):
    """Logits [N, C], or their softmax, of inputs [N, ...]: scale * z + shift, with z what a run's classifier predicts.

    scale: that of a head's cosines, else 1. shift: [C], log of the prior that is asked for less log of the one that the
    logits hold (Hong et al., 2021); None leaves them as they were trained. first: what inputs go through before.
    """

    shift: Tensor | None

    def __init__(
        self, module: Classifier, shift: Tensor | None = None, first: nn.Module | None = None, logits: bool = False
    ) -> None:
        super().__init__()
        self.module, self.first, self.logits = module, first, logits
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.first is not None:
            inputs = self.first(inputs)
        logits = readings.scores(self.module, self.module.features(inputs))
        if self.shift is not None:
            logits = logits + self.shift
        return logits if self.logits else logits.softmax(-1)


def scorer_of(
    config: TrainConfig,
    data: LongTailedData,
    module: Classifier,
    prior: Tensor | None = None,
    first: nn.Module | None = None,
    logits: bool = False,
) -> Scorer:
    """The scorer of a finished run in evaluation mode; prior: [C] in any unit, None for probabilities as trained.

    Errors: ConfigError where the method has no probabilities, or its logits hold no prior that another can replace.
    """
    method = find_method(config.method)
    if (method.readout or method.closing) in RANKED and not (logits and prior is None):
        raise ConfigError(
            f"the method must have probabilities, got {config.method}: its class weights are changed after "
            "training, so that its logits say which class is first and not by how much; export takes --logits"
        )
    shift = None if prior is None else _shift(config, data, module, prior)
    return Scorer(module.eval(), shift, first, logits)


def _shift(config: TrainConfig, data: LongTailedData, module: Classifier, prior: Tensor) -> Tensor:
    held = held_prior(config, data.class_counts, module, "scale")
    if held is None:
        drawn = "as its samples were drawn, " if holds(config) == "nothing" else ""
        raise ConfigError(
            f"--prior must be left out for this run: {drawn}the class prior that the logits of {config.method} hold "
            "is not known"
        )
    share = (prior.double() / prior.double().sum()).log() - (held / held.sum()).log()
    return share.float()


@torch.inference_mode()
def scores_of(scorer: Scorer, inputs: Tensor) -> Tensor:
    """What a scorer makes of one part of inputs, where the classifier is: [N, C] on the CPU."""
    return scorer(inputs.to(scorer.module.device)).cpu()
