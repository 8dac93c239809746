"""What the harness puts around networks: the step from pixels to numbers, and several networks side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lt_kernels.train.model.timm_images import TimmImages


class Experts(nn.Module):
    """Several networks of one kind on the same inputs, their features side by side: [N, ...] -> [N, experts * d]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([network(inputs) for network in self.networks], 1)


class Pixels(nn.Module):
    """A network behind the step from pixels to numbers: channel c of the pixels, in 0..1, becomes
    (x - mean_c) / deviation_c. Bytes 0..255 are divided by 255 first.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.out_features = network.out_features
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        pixels = input if input.is_floating_point() else input.float() / 255
        return self.network((pixels - self.mean) / self.deviation)


def own_networks(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The networks within what is put around them, and the prefixes that their parameters' names have there."""
    if isinstance(network, Experts):
        for index, one in enumerate(network.networks):
            yield from own_networks(one, f"{prefix}networks.{index}.")
    elif isinstance(network, (Pixels, TimmImages)):
        yield from own_networks(network.network, f"{prefix}network.")
    else:
        yield prefix, network
