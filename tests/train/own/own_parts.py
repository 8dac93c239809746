"""What a user may have written: a network, and a function that makes one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Blocks(nn.Module):
    """A stem, three blocks with batch norm and dropout, and a norm: [N, 1, 8, 8] -> [N, width]."""

    def __init__(self, width: int = 12, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
            for _ in range(3)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.stem(inputs.flatten(1))
        for block in self.blocks:
            features = block(features)
        return self.norm(features)


def flat(out_features: int, **options: bool) -> nn.Module:
    """A linear layer of 64 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, out_features, **options))


def number() -> nn.Module:
    """What is no network, and says that it is."""
    return 0.5  # type: ignore[return-value]


class Maps(nn.Module):
    """What gives no features [N, d]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class Wide(nn.Module):
    """What takes other inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(torch.cat([inputs, inputs], -1).flatten(1))


class Noisy(Dataset[tuple[Tensor, int]]):
    """Rows of noise around the class, other noise each time that an item is read."""

    def __init__(self, count: int = 60, train: bool = True) -> None:
        self.count, self.train = count, train

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        label = row % 7 % 3
        return torch.nn.functional.one_hot(torch.tensor(label), 3) + self.train * torch.rand(3), label


class Lookup(nn.Module):
    """What asks a dictionary for what is not in it, while it is made or when it is called."""

    def __init__(self, made: bool) -> None:
        super().__init__()
        self.known: dict[object, int] = {} if made else {True: {}[made]}

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.known["width"]
