"""What a run is made of, from its config: the data set, and the classifier before its first step."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from lt_kernels.data import LongTailedData, load, validation_split
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import build_method, run_options
from lt_kernels.train.methods.method import Setting
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.dealt import Dealt
from lt_kernels.train.model.networks import build_network
from lt_kernels.train.model.parameters import freeze
from lt_kernels.train.model.wrappers import Experts
from lt_kernels.train.ranks.group import ALONE, Ranks
from lt_kernels.train.ranks.mesh import mesh_of, shard_network
from lt_kernels.train.run import checks
from lt_kernels.train.run.generators import seed_rank


def load_data(config: TrainConfig) -> LongTailedData:
    """The data set of a config, or the part of its training set that is held out and what is left; `data_options` may
    name the seed of the data.
    """
    try:
        data = load(config.data, config.imbalance, **config.data_options)
        if config.validation:
            data = validation_split(data, config.validation, config.seed, "validation" if config.stops else "test")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"data {config.data}, imbalance {config.imbalance}, data_options {config.data_options}, validation "
            f"{config.validation}: {error}"
        ) from error
    if config.stops and data.validation is None:
        raise ConfigError(
            f"validation must be above 0 where patience or keep_best is set, so that training is not stopped by the "
            f"test set, got {config.validation}"
        )
    return data


def build_module(config: TrainConfig, data: LongTailedData, ranks: Ranks = ALONE) -> Classifier:
    """Network and head, drawn from the config's seed: methods compared under one seed start from one network, and all
    processes of a run from the same; each then draws from a stream of its own.

    A teacher, where the method names one, is not with it yet: `loading.add_teacher`.
    """
    config = effective(config)
    checks.check_mixing(config, data)
    checks.check_augmentations(config, data)
    checks.check_ranks(config, ranks)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002 (the state that other people's code draws from)
    torch.manual_seed(config.seed)
    try:
        network = build_network(config.network, data, **config.network_options)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"network {config.network}, network_options {config.network_options}: {error}") from error
    mesh = mesh_of(ranks)
    sharded = mesh if config.head == "sharded" else None
    setting = Setting(data.class_counts, network.out_features, config.epochs, sharded)
    parts = build_method(config.method, setting, config.method_options)
    others = [build_network(config.network, data, **config.network_options) for _ in range(1, parts.experts)]
    network = freeze(Experts([network, *others]) if others else network, config.freeze)
    checks.check_pixels(config, data, parts.head)
    if ranks.world > 1 and config.sync_batch_norm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if mesh is not None and config.strategy == "fsdp":
        shard_network(network, mesh)
    module = Classifier(config, network, parts)
    if ranks.world * config.accumulate > 1:
        apart, scenes = config.strategy == "fsdp" and ranks.world > 1, data.input_kind == "scene"
        module.dealt = Dealt(ranks.world, config.accumulate, scenes, sharded is not None, apart)
        module.dealt.tell(module)
    if not ranks.first:
        seed_rank(config.seed, ranks.rank, 0, ranks.world)
    return module


def effective(config: TrainConfig) -> TrainConfig:
    """The config with what its method brings along: a sampler, MixUp or CutMix."""
    return config.replace(**run_options(config.method, config.method_options))
