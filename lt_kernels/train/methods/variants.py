"""Variants: a method with options or settings of its training changed, under a name of its own, for ablations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import find_method, method_names, method_options
from lt_kernels.train.methods.method import REPULSION_SUFFIX

# What a variant may change beside the options of its method: how it is trained, but not on what.
TRAINING = (
    "network_options",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "lr_factors",
    "layer_decay",
    "freeze",
    "momentum",
    "weight_decay",
    "no_decay",
    "nesterov",
    "warmup_epochs",
    "schedule",
    "schedule_interval",
    "milestones",
    "gammas",
    "poly_power",
    "mixup_alpha",
    "cutmix_alpha",
    "sampler",
    "augment",
    "augment_options",
    "augment_views",
)


def variants_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The recipe's variants by name: {method: NAME, and options of it or settings of TRAINING}.

    Errors: ConfigError for a name that no folder can have or that a method has, and for a variant without a method.
    """
    variants = settings.get("variants") or {}
    if not isinstance(variants, Mapping):
        raise ConfigError(f"variants must map names to {{method: NAME, options}}, got {variants!r}")
    for name, variant in variants.items():
        taken = {*method_names(), "all", "variants"}
        if not re.fullmatch(r"\w[\w.+=-]*", str(name)) or str(name).removesuffix(REPULSION_SUFFIX) in taken:
            allowed = "names of letters, digits and . + = - _, no method's nor all or variants"
            raise ConfigError(f"variants must have {allowed}, got {name!r}")
        if not isinstance(variant, Mapping) or "method" not in variant:
            raise ConfigError(f"variants.{name} must be {{method: NAME, and options of it}}, got {variant!r}")
    return {str(name): dict(variant) for name, variant in variants.items()}


def check_methods(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError for options, under `methods`, of a method that there is not: nothing would read them."""
    methods = settings.get("methods")
    for name in methods if isinstance(methods, Mapping) else ():
        try:
            find_method(str(name))
        except ConfigError as error:
            raise ConfigError(f"methods: {error}") from None


def config_of(settings: Mapping[str, Any], name: str, seed: int) -> TrainConfig:
    """The config of one run of a method or of a variant; all its options are checked."""
    check_methods(settings)
    own, variant = dict(settings), variants_of(settings).get(name)
    own.pop("variants", None)
    if variant is not None:
        method = str(variant.pop("method"))
        options = method_options(method, {})
        own.update({key: variant.pop(key) for key in TRAINING if key in variant and key not in options})
        own["method_options"] = variant
    else:
        method = name
    find_method(method)
    config = make_config({**own, "method": method, "seed": seed})
    method_options(method, config.method_options)
    return config


def title_of(name: str, config: Mapping[str, Any]) -> str:
    """The method's title, and for a variant its options, of a run's `config` as `result.json` holds it."""
    title = find_method(config["method"]).title
    if name == config["method"]:
        return title
    options = ", ".join(f"{key} {value}" for key, value in config["method_options"].items())
    return f"{title}; {options}" if options else title
