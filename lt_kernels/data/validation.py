"""A part of the training set held out to choose settings on, so that none is chosen on the test set."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData
from lt_kernels.data.lazy import LazyRows
from lt_kernels.data.profiles import choose


def validation_split(
    data: LongTailedData, per_class: int, seed: int = 0, place: Literal["test", "validation"] = "test"
) -> LongTailedData:
    """The same data with `per_class` training samples of each class as its test set, and the others as training set;
    with the place "validation" they are beside the test set, to stop training by.

    A class gives at most half of its samples, rounded down, so that each keeps one and a class with a single sample
    has none to validate on; its accuracy is NaN and counts in no mean. `seed` says which samples they are. Pictures
    in files are cut as those of the test set. Errors: ValueError for `per_class` below 1, another place, where pixels
    have classes, or if no class has two samples.
    """
    checks.whole("per_class", per_class)
    checks.choice("place", place, ("test", "validation"))
    if data.input_kind == "scene":
        raise ValueError(f"data must have one class a sample to hold some out by class, got the scenes of {data.name}")
    target = data.train[1]
    taken = (data.class_counts // 2).clamp(max=per_class)
    if not int(taken.sum()):
        raise ValueError(f"data must have a class with two training samples, got {data.name} with none")
    held = choose(target, taken.tolist(), seed)
    kept = torch.ones(len(target), dtype=torch.bool).index_fill(0, held, False).nonzero().flatten()
    inputs, test = data.train[0], data.test[0]
    crop = getattr(test, "crop", None)
    parts = {"train": (_rows(inputs, kept, None), target[kept]), place: (_rows(inputs, held, crop), target[held])}
    return dataclasses.replace(data, **parts, class_counts=data.class_counts - taken)


def _rows(inputs: Tensor, rows: Tensor, crop: int | None) -> Any:
    return inputs.subset(rows, crop) if isinstance(inputs, LazyRows) else inputs[rows]
