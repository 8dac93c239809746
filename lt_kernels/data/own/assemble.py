"""What readers of one's own data share: a test share that is held out, and the checks of the two parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData
from lt_kernels.data.lazy import LazyRows
from lt_kernels.data.profiles import choose

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that most stored weights were made with
Part = tuple[Any, Tensor]  # inputs and target
MOST_SIDE = 64  # pixels, unless a size is asked for


def check_imbalance(name: str, imbalance: float | None) -> None:
    """Refuse a profile: the counts are the data's own."""
    if imbalance is not None:
        raise ValueError(f"imbalance must be None for {name}, whose counts are the data's own, got {imbalance}")


def held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows, int64, that stay for training, and those of a `share` of each class that are held out as its test set.

    A class gives round(share * n) of its n samples, at least one and at most n - 1; one with a single sample none.
    Errors: ValueError for a share outside of (0, 1), or if no class has two samples.
    """
    share = checks.number("test", share, 0, 1, above=0)
    if share == 1:
        raise ValueError(f"test must be a share below 1, got {share}")
    counts = torch.bincount(labels)
    taken = (counts * share).round().long().clamp(min=1).minimum(counts - 1).clamp(min=0)
    if not int(taken.sum()):
        raise ValueError(f"test must be a folder or a split where no class has two samples to share out, got {share}")
    held = choose(labels, taken.tolist(), seed)
    kept = torch.ones(len(labels), dtype=torch.bool).index_fill(0, held, False).nonzero().flatten()
    return kept, held


def shared_out(inputs: Any, labels: Tensor, share: float, seed: int, crop: int | None = None) -> tuple[Part, Part]:
    """What stays for training, and the `share` of each class that is its test set, of pictures with `crop` pixels a
    side. Errors: ValueError as for `held_out`.
    """
    kept, held = held_out(labels, share, seed)
    return (_rows(inputs, kept), labels[kept]), (_rows(inputs, held, crop), labels[held])


def _rows(inputs: Any, rows: Tensor, crop: int | None = None) -> Any:
    """Some rows of a tensor, or of what is read lazily."""
    return inputs.subset(rows, crop) if isinstance(inputs, LazyRows) else inputs[rows]


def _stored(inputs: Any, lazy: bool) -> Any:
    """The inputs as they are, or those that are read lazily once and for all as a tensor."""
    return inputs if lazy or isinstance(inputs, Tensor) else torch.cat(list(inputs.split(256)))


def side_of(size: tuple[int, int], resize: int | None) -> int:
    """What the shorter side is scaled to: what is asked for, or that of the first picture, at most MOST_SIDE."""
    return checks.whole("resize", min(*size, MOST_SIDE) if resize is None else resize)


def crops_of(resize: int, train_crop: int | None, crop: int | None) -> tuple[int, int]:
    """The sides that are cut out for training and for the test; as a whole, unless they are given."""
    train = checks.whole("train_crop", resize if train_crop is None else train_crop, 1, resize)
    return train, checks.whole("crop", resize if crop is None else crop, 1, resize)


def channels(key: str, value: Any, count: int, default: Sequence[float]) -> tuple[float, ...]:
    """The pixels' mean or deviation of each channel."""
    numbers = tuple(
        checks.number(f"{key}[{index}]", one) for index, one in enumerate(default if value is None else value)
    )
    if len(numbers) != count:
        raise ValueError(f"{key} must have a number for each of {count} channels, got {list(numbers)}")
    return numbers


def pixels(mean: Any, deviation: Any, count: int = 3) -> dict[str, tuple[float, ...]]:
    """The fields `pixel_mean` and `pixel_deviation`; ImageNet's for three channels, 0.5 for others, unless given."""
    defaults = IMAGENET if count == 3 else ((0.5,) * count, (0.5,) * count)
    found = {
        "pixel_mean": channels("pixel_mean", mean, count, defaults[0]),
        "pixel_deviation": channels("pixel_deviation", deviation, count, defaults[1]),
    }
    if min(found["pixel_deviation"]) <= 0:
        raise ValueError(f"pixel_deviation must be above 0, got {list(found['pixel_deviation'])}")
    return found


def assembled(
    name: str, train: Part, test: Part, class_names: Sequence[str], lazy: bool, **fields: Any
) -> LongTailedData:
    """The data set; without `lazy` all inputs are read once and for all.

    Errors: ValueError naming the class that has no training sample.
    """
    checks.flag("lazy", lazy)
    counts = torch.bincount(train[1], minlength=len(class_names))
    if int(counts.min()) == 0:
        none = class_names[int(counts.argmin())]
        raise ValueError(f"{name} must have a training sample of each class, got none of {none!r}")
    if not len(test[1]):
        raise ValueError(f"{name} must have a test sample, got none")
    return LongTailedData(
        name=name,
        train=(_stored(train[0], lazy), train[1]),
        test=(_stored(test[0], lazy), test[1]),
        class_counts=counts,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        **{"input_kind": "image", **fields},
    )
