"""What a data set is here: in-memory tensors of a long-tailed training set and a balanced test set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.system.spelling import did_you_mean

IGNORED = -100  # the losses' ignore_index: a pixel that has no class


@dataclass(frozen=True, eq=False)
class LongTailedData:
    """A long-tailed training set and its test set, as in-memory tensors.

    train, test: (inputs [N, ...], target int64 [N]). class_counts: int64 [C], samples of each class in `train`.
    input_kind "image": inputs float32 [N, channels, height, width]; "words": inputs int32 [N, places], ids below
    `num_words`; "scene": inputs as images, target int64 [N, height, width], IGNORED where a pixel has no class, and
    class_counts counts the pixels that have one. group_counts: int64 [C], by what classes are called many-, medium- or
    few-shot (None: by class_counts). units: words for what class_counts and group_counts count. facts: what was
    measured when the data were made (numbers only).

    Photographs are pixels, uint8 or float32 in 0..1: `pixel_mean` and `pixel_deviation` [channels] are what a network
    takes off and divides by. Inputs, and targets of scenes, may also be `lazy.LazyRows`, which read files when a batch
    is asked for; what such targets hold is not looked at here.
    resize: what the shorter side of a picture was scaled to before its middle was cut out (0: the inputs' side).
    validation: samples as those of `test` that training may be stopped by, where some are held out for it.
    Errors: TypeError or ValueError naming the field that contradicts another.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    class_counts: Tensor
    num_classes: int
    input_kind: Literal["image", "words", "scene"]
    class_names: tuple[str, ...]
    num_words: int = 0
    facts: Mapping[str, float] = field(default_factory=dict)
    group_counts: Tensor | None = None
    units: tuple[str, str] = ("samples", "samples")
    pixel_mean: tuple[float, ...] = ()
    pixel_deviation: tuple[float, ...] = ()
    validation: tuple[Tensor, Tensor] | None = None
    resize: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            shown = f"got {self.num_classes}{f', {self.class_names[0]!r}' if self.class_names else ''}"
            raise ValueError(f"num_classes must be at least 2, of which a sample is one or another, {shown}")
        parts: tuple[Literal["train", "test"], ...] = ("train", "test")
        for part in parts:
            inputs, target = getattr(self, part)
            if len(inputs) != len(target):
                raise ValueError(f"{part} must have as many inputs as targets, got {len(inputs)} and {len(target)}")
            if target.dtype != torch.int64:
                raise TypeError(f"{part} targets must be int64, got {target.dtype}")
            wanted = (len(inputs), *inputs.shape[2:]) if self.input_kind == "scene" else (len(inputs),)
            if tuple(target.shape) != wanted:
                raise ValueError(f"{part} targets must have shape {list(wanted)}, got {list(target.shape)}")
            if isinstance(target, Tensor):
                self._check_labels(part)
        if self.group_counts is not None and self.group_counts.shape != self.class_counts.shape:
            raise ValueError(f"group_counts must have shape [{self.num_classes}], got {list(self.group_counts.shape)}")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must have num_classes = {self.num_classes} names, got {len(self.class_names)}"
            )

    def _check_labels(self, part: Literal["train", "test"]) -> None:
        labels = self.labels(part)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            span = f"{int(labels.min())}..{int(labels.max())}"
            raise ValueError(f"{part} targets must be in 0..{self.num_classes - 1}, got {span}")
        if part == "train" and not torch.equal(torch.bincount(labels, minlength=self.num_classes), self.class_counts):
            what = "pixels" if self.input_kind == "scene" else "targets"
            raise ValueError(f"class_counts must be the number of training {what} of each class")

    def labels(self, part: Literal["train", "test"]) -> Tensor:
        """Every class that counts in a part, int64 [M]: one a sample, or one a pixel that is not ignored.
        Targets must be in memory.
        """
        target = self.train[1] if part == "train" else self.test[1]
        return target[target != IGNORED] if self.input_kind == "scene" else target


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
    Further options are the reader's own. Errors: ValueError for an unknown name or a value out of range, TypeError for
    an option that the reader does not have, ImportError naming the extra that is missing.
    """
    if name not in READERS:
        raise ValueError(f"name must be one of {sorted(READERS)}, got {name!r}")
    checks.whole("seed", seed, 0)
    _check_options(name, options)
    return READERS[name](imbalance=imbalance, seed=seed, cache_dir=cache_dir, **options)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    taken = inspect.signature(READERS[name]).parameters
    wrong = next((option for option in options if option not in taken), None)
    if wrong is not None and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise TypeError(
            f"options of {name} must be among {', '.join(taken)}, got {wrong!r}{did_you_mean(wrong, taken)}"
        )
