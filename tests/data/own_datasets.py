"""Datasets that a user may have written."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Points(Dataset[Any]):
    """Item i: a number that says i and the part, as `kind` gives it, and its class."""

    def __init__(self, labels: list[int], start: int = 0, kind: str = "tensor", noisy: bool = False) -> None:
        self.labels, self.start, self.kind, self.noisy = labels, start, kind, noisy
        self.classes = ["low", "high"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Any:
        value = self.start + row
        noise = torch.rand(()).item() + random.random() + np.random.rand() if self.noisy else 0.0  # noqa: NPY002
        if self.kind == "picture":
            from PIL import Image

            return Image.new("L", (4, 3), value), np.int64(self.labels[row])
        if self.kind == "array":
            return np.full((2, 2), value + noise), torch.tensor(self.labels[row])
        if self.kind == "ragged":
            return torch.zeros(2 + row), self.labels[row]
        if self.kind == "words":
            return torch.tensor([row, 1]), self.labels[row]
        if self.kind == "single":
            return torch.zeros(2)
        if self.kind == "text":
            return torch.zeros(2), "low"
        return torch.tensor([value + noise, 1.0]), self.labels[row]


class WithTargets(Points):
    """Labels as an attribute, and items that may not be read before they are asked for."""

    def __init__(self, labels: list[int], start: int = 0) -> None:
        super().__init__(labels, start)
        self.targets = labels
        self.read: list[int] = []

    def __getitem__(self, row: int) -> Any:
        self.read.append(row)
        return super().__getitem__(row)


class Named(Points):
    """Its classes' names in an order of its own, as a folder that lacks a class numbers them."""

    def __init__(self, labels: list[int], classes: list[str]) -> None:
        super().__init__(labels)
        self.classes = classes
