"""What a data set is here: in-memory tensors of a long-tailed training set and a balanced test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LongTailedData:
    """A long-tailed training set and its test set, as in-memory tensors.

    train, test: (inputs [N, ...], target int64 [N]). class_counts: int64 [C], samples of each class in `train`.
    input_kind "image": inputs float32 [N, channels, height, width]; "words": inputs int32 [N, places], ids below
    `num_words`. facts: what was measured when the data were made (numbers only). Errors: ValueError naming the field
    that contradicts another.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    class_counts: Tensor
    num_classes: int
    input_kind: Literal["image", "words"]
    class_names: tuple[str, ...]
    num_words: int = 0
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            inputs, target = getattr(self, part)
            if len(inputs) != len(target):
                raise ValueError(f"{part} must have as many inputs as targets, got {len(inputs)} and {len(target)}")
            if len(target) and not 0 <= int(target.min()) <= int(target.max()) < self.num_classes:
                span = f"{int(target.min())}..{int(target.max())}"
                raise ValueError(f"{part} targets must be in 0..{self.num_classes - 1}, got {span}")
        counted = torch.bincount(self.train[1], minlength=self.num_classes)
        if not torch.equal(counted, self.class_counts):
            raise ValueError("class_counts must be the number of training targets of each class")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must have num_classes = {self.num_classes} names, got {len(self.class_names)}"
            )


Reader = Callable[..., LongTailedData]
READERS: dict[str, Reader] = {}


def register(name: str) -> Callable[[Reader], Reader]:
    """Return a decorator that makes a reader (imbalance=, seed=, cache_dir=, **options) known to `load` by `name`."""

    def enter(reader: Reader) -> Reader:
        READERS[name] = reader
        return reader

    return enter


def load(
    name: str,
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> LongTailedData:
    """Read or make the data set `name`, one of `sorted(READERS)`.

    imbalance: n_max / n_min of the profile (None: the reader's default; a set with a tail of its own takes none). seed:
    which samples are drawn. cache_dir: where a reader keeps what takes long to make (None: ~/.cache/lt_kernels).
    Further options are the reader's own. Errors: ValueError for an unknown name or a value out of range, ImportError
    naming the extra that is missing.
    """
    if name not in READERS:
        raise ValueError(f"name must be one of {sorted(READERS)}, got {name!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return READERS[name](imbalance=imbalance, seed=seed, cache_dir=cache_dir, **options)
