"""Parameters chosen by patterns of their names: frozen, without weight decay, or with a learning rate of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.model.wrappers import own_networks

SHOWN = 3  # names in an error


def plain_names(network: nn.Module) -> dict[str, str]:
    """By the name that a parameter has in a classifier, the one that patterns match: network.NAME, with the name that
    it has in its own network.
    """
    return {
        f"network.{prefix}{name}": f"network.{name}"
        for prefix, own in own_networks(network)
        for name, _ in own.named_parameters()
    }


def matching(key: str, patterns: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The names that each pattern matches. Errors: ConfigError naming a pattern that matches none."""
    found = {pattern: [name for name in names if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns}
    for pattern, matched in found.items():
        if not matched:
            some = ", ".join([*names[:SHOWN], "..."] if len(names) > SHOWN else names)
            raise ConfigError(f"{key} must match the name of a parameter, such as {some}; got {pattern!r}")
    return found


def freeze(network: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """The network, whose parameters that match are not trained any more.

    Errors: ConfigError naming a pattern that matches none.
    """
    named: dict[str, list[nn.Parameter]] = {}  # several networks side by side have parameters of one name
    for _, own in own_networks(network):
        for name, parameter in own.named_parameters():
            named.setdefault(f"network.{name}", []).append(parameter)
    for matched in matching("freeze", patterns, list(named)).values():
        for name in matched:
            for parameter in named[name]:
                parameter.requires_grad_(False)
    return network


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The largest parts that have parameters, none of which is trained."""
    parameters = list(network.parameters())
    if parameters and not any(one.requires_grad for one in parameters):
        return [network]
    return [part for child in network.children() for part in frozen_parts(child)]


def depth_factors(network: nn.Module, decay: float) -> dict[str, float]:
    """By name, what layer-wise decay multiplies a parameter's learning rate by.

    Of L blocks, the parts with parameters of the outermost nn.Sequential and nn.ModuleList, block l from 1 has
    decay^(L + 1 - l), what comes before the first one decay^(L + 1), and what comes after the last one 1 (Clark et
    al., 2020; Bao et al., 2022). Errors: ConfigError for a network without blocks.
    """
    blocks = list(_blocks(network, ""))
    if not blocks:
        raise ConfigError(f"layer_decay must be 1 for a network without blocks, got {decay}")
    factors, passed = {}, 0
    for name, _ in network.named_parameters():
        inside = [place for place, prefix in enumerate(blocks, 1) if name.startswith(prefix)]
        passed = max([passed, *inside])
        if inside:
            factors[name] = decay ** (len(blocks) + 1 - inside[0])
        else:
            factors[name] = 1.0 if passed else decay ** (len(blocks) + 1)
    return factors


def _blocks(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            if next(child.parameters(), None) is not None:
                yield f"{prefix}{name}."
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def grouped(config: TrainConfig, network: nn.Module, named: dict[str, nn.Parameter]) -> list[dict[str, object]]:
    """The trained parameters in groups for an optimizer: `params`, `decays`, and `factor` of the learning rate.

    A learned temperature does not decay. Errors: ConfigError naming a pattern that matches no parameter.
    """
    known = plain_names(network)
    plain = {name: known.get(name, name) for name in named}
    names = list(dict.fromkeys(plain.values()))
    still = {name for some in matching("no_decay", config.no_decay, names).values() for name in some}
    factor = dict.fromkeys(named, 1.0)
    if config.layer_decay != 1:
        for prefix, own in own_networks(network):
            found = depth_factors(own, config.layer_decay)
            factor.update({f"network.{prefix}{name}": value for name, value in found.items()})
    for pattern, matched in matching("lr_factors", config.lr_factors, names).items():
        for name in named:
            factor[name] *= config.lr_factors[pattern] if plain[name] in matched else 1.0
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        still_one = name.endswith("log_temperature") or plain[name] in still
        groups.setdefault((still_one, factor[name]), []).append(parameter)
    ordered = sorted(groups, key=lambda one: one[0])  # those that decay come first
    return [{"params": groups[one], "decays": not one[0], "factor": one[1]} for one in ordered]
