"""The inputs of the GPU check: sizes, and random numbers that are the same in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[..., Tensor]
PARTS = ("rows", "linear", "cosine", "repulsion", "lade")


class Scene(NamedTuple):
    """`ours` and `dense`, functions of the leaves (which get gradients) and the constants, all of one dtype."""

    name: str
    ours: Function
    dense: Function
    leaves: dict[str, Tensor]
    constants: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)

    @property
    def title(self) -> str:
        """The name with the sizes of the first leaves."""
        named = (leaf for name, leaf in self.leaves.items() if name not in ("offset", "linear_bias"))
        return f"{self.name} {' '.join(str(list(leaf.shape)) for leaf in named)}"


class Sizes(NamedTuple):
    """Sizes at which the plain function is run (`plain`), and with each option (`options`), by part."""

    plain: dict[str, tuple[tuple[int, ...], ...]]
    options: dict[str, tuple[tuple[int, ...], ...]]


FEATURES = ((1, 1, 1), (3, 5, 7), (64, 100, 64), (130, 1_025, 33), (256, 8_142, 256), (19, 50_001, 40))
FULL = Sizes(
    plain={
        "rows": ((1, 1), (3, 5), (1, 1_000), (130, 100), (7, 1_025), (33, 8_142), (257, 8_191), (5, 128_257)),
        "linear": FEATURES,
        "cosine": ((1, 1, 3), *FEATURES[1:]),  # with one feature every angle is 0 or pi, where acos has no slope
        "repulsion": ((1, 3), (5, 7), (130, 33), (1_003, 48), (4_100, 96)),
        "lade": ((3, 5), (33, 100), (257, 1_025)),
    },
    options={
        "rows": ((37, 100), (9, 1_025)),
        "linear": ((67, 1_003, 48), (1_003, 67, 48)),
        "cosine": ((67, 1_003, 48), (1_003, 67, 48)),
        "repulsion": ((515, 64),),
        "lade": ((65, 33),),
    },
)
# What Triton's interpreter can afford, and what runs under a memory checker.
TINY = Sizes(
    plain={
        "rows": ((3, 5),),
        "linear": ((3, 5, 7),),
        "cosine": ((3, 5, 7),),
        "repulsion": ((20, 7),),
        "lade": ((3, 5),),
    },
    options={
        "rows": ((6, 130),),
        "linear": ((9, 130, 24),),
        "cosine": ((9, 130, 24),),
        "repulsion": ((33, 16),),
        "lade": ((9, 17),),
    },
)


@dataclass
class Pool:
    """Random numbers, drawn in float64 and rounded to a dtype; the same seed gives the same ones in every dtype."""

    device: str
    dtype: torch.dtype
    seed: int
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    def rounded(self, values: Tensor) -> Tensor:
        """On the device and in the dtype."""
        return values.to(self.device, self.dtype)

    def draw(self, *shape: int, spread: float = 1.0) -> Tensor:
        """Normal numbers in float64 on the host."""
        return spread * torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def normal(self, *shape: int, spread: float = 1.0) -> Tensor:
        """Normal numbers of the given spread."""
        return self.rounded(self.draw(*shape, spread=spread))

    def positive(self, *shape: int) -> Tensor:
        """Numbers from 0.1 to 2."""
        return self.rounded(0.1 + 1.9 * torch.rand(*shape, generator=self.random, dtype=torch.float64))

    def classes(self, *shape: int, below: int) -> Tensor:
        """Class indices."""
        return torch.randint(below, shape, generator=self.random).to(self.device)

    def counts(self, classes: int) -> Tensor:
        """Class counts from 1 to 500 in float64."""
        return torch.randint(1, 501, (classes,), generator=self.random).double().to(self.device)

    def features(self, rows: int, classes: int, size: int, target: Tensor) -> dict[str, Tensor]:
        """Features and class weights; every other row lies near its class weight (cosine about 0.8)."""
        weight = self.draw(classes, size, spread=size**-0.5)
        input = self.draw(rows, size)
        input[::2] += 1.5 * size**0.5 * weight[target.cpu().clamp_min(0)[::2]]
        return {"input": self.rounded(input), "linear_weight": self.rounded(weight)}
