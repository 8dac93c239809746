"""The data set dataset: any torch Dataset by its class path."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.lazy import LARGEST_PART, LazyRows
from lt_kernels.data.own.assemble import assembled, check_imbalance, pixels, shared_out
from lt_kernels.system import classes


def as_input(value: Any, where: str) -> Tensor:
    """An item's input as a tensor: a picture of Pillow as bytes [channels, height, width], numbers as float32."""
    if hasattr(value, "getbands"):  # a picture of Pillow
        levels = np.array(value if value.mode == "L" else value.convert("RGB"))
        return torch.from_numpy(levels if levels.ndim == 3 else levels[:, :, None]).permute(2, 0, 1).contiguous()
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where} must have a tensor, an array, numbers or a picture as input: {error}") from error
    if found.dtype == torch.uint8 and found.ndim == 3:
        return found
    if not found.is_floating_point() and found.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"{where} must have floating-point numbers or bytes as input, got {found.dtype}")
    return found.float()


def _item(data: Any, row: int) -> tuple[Tensor, Any]:
    where = f"item {row} of {type(data).__name__}"
    item = data[row]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(f"{where} must be a pair (input, label), got {type(item).__name__}")
    return as_input(item[0], where), item[1]


def _label(value: Any, where: str) -> int:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{where} must have a class index of at least 0 as label, got {value!r}")
    return int(value)


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Within, all generators begin at `seed`: what a data set draws while it is read once is the same each time."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state that other people's code draws from)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


class DatasetRows(LazyRows):
    """The inputs of a Dataset, each read when a batch is asked for, in the caller's thread: what it draws is drawn in
    the order of the batches.
    """

    def __init__(self, data: Any, first: Tensor) -> None:
        super().__init__(1)
        self.data, self.item, self.dtype = data, first.shape, first.dtype

    def __len__(self) -> int:
        return len(self.data)

    def read(self, row: int) -> Tensor:
        """One input."""
        return self.pair(row)[0]

    def pair(self, row: int) -> tuple[Tensor, Any]:
        """One input and its label. Errors: ValueError naming an item of another shape or dtype than the first one's."""
        found, label = _item(self.data, row)
        if found.shape != self.item or found.dtype != self.dtype:
            what = f"{list(self.item)} of {self.dtype} as the first one, got {list(found.shape)} of {found.dtype}"
            raise ValueError(f"item {row} of {type(self.data).__name__} must have an input {what}")
        return found, label

    @property
    def shape(self) -> torch.Size:
        """[N, ...]."""
        return torch.Size((len(self), *self.item))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows, int64 [M]; `dim` is 0."""
        found = [self.read(row) for row in index.tolist()]
        return torch.stack(found) if found else torch.empty(0, *self.item, dtype=self.dtype)

    def prefetch(self, index: Tensor) -> None:
        """Nothing: it would draw before its turn."""

    def split(self, split_size: int) -> Iterator[Tensor]:
        """All rows in order, at most `split_size` and at most 256 at a time."""
        for part in torch.arange(len(self)).split(min(checks.whole("split_size", split_size), LARGEST_PART)):
            yield self.index_select(0, part)

    def subset(self, index: Tensor, crop: int | None = None) -> LazyRows:
        """Some rows, int64 [M]."""
        if crop is not None:
            raise ValueError(f"crop must be None for items of a Dataset, got {crop}")
        return DatasetRows(torch.utils.data.Subset(self.data, index.tolist()), torch.empty(self.item, dtype=self.dtype))


def read_part(spec: Mapping[str, Any], changes: Mapping[str, Any], lazy: bool, seed: int) -> tuple[Any, Tensor, Any]:
    """The inputs, the labels and the Dataset of a part."""
    arguments = {**spec.get("init_args", {}), **changes}
    made = {"class_path": spec["class_path"], "init_args": arguments}
    with drawing(seed):
        data: Any = classes.make("data_options", made, Dataset)
        if not hasattr(data, "__len__") or not len(data):
            raise ValueError(f"class_path must name a Dataset with items and a length, got {spec['class_path']!r}")
        rows = DatasetRows(data, _item(data, 0)[0])
        known = getattr(data, "targets", None)
        if lazy and known is not None and len(known) == len(data):
            labels = [_label(value, f"targets[{row}]") for row, value in enumerate(known)]
            return rows, torch.tensor(labels), data
        inputs: list[Tensor] = []
        labels = []
        for row in range(len(data)):
            found, label = rows.pair(row)
            labels.append(_label(label, f"item {row} of {type(data).__name__}"))
            if not lazy:
                inputs.append(found)
    return (rows if lazy else torch.stack(inputs)), torch.tensor(labels), data


@register("dataset")
def dataset(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    class_path: str | None = None,
    init_args: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | float | None = None,
    lazy: bool = False,
    pixel_mean: Sequence[float] | None = None,
    pixel_deviation: Sequence[float] | None = None,
) -> LongTailedData:
    """A torch Dataset whose items are (input, label): inputs as they come, stacked, and target int64 [N].

    class_path, init_args: the class and its arguments; train, test: those that differ for the two parts. Where `test`
    is a number in (0, 1), that share of each class is held out of the training part, drawn with `seed`. An input is a
    tensor, an array or numbers, all of one shape, or a picture of Pillow; pictures, as bytes too, are pixels, of which
    `pixel_mean` and `pixel_deviation` are taken off and divided by (ImageNet's for three channels, else 0.5). A label
    is an index; the classes' names are the Dataset's attribute `classes`, where it has one for each. Items are read
    once, each, or with `lazy` each time that a batch asks for them, in the main thread, so that what they draw is part
    of a run that goes on; labels are then those of its attribute `targets`, where it has one. imbalance must be None;
    cache_dir is not used. Errors: ValueError naming the argument or the item.
    """
    check_imbalance("dataset", imbalance)
    allowed = "the path of a Dataset, such as torchvision.datasets.MNIST"
    if not isinstance(class_path, str) or "." not in class_path.strip("."):
        raise ValueError(f"class_path must be {allowed}, got {class_path!r}")
    spec = {"class_path": class_path, "init_args": _arguments("init_args", init_args)}
    inputs, labels, made = read_part(spec, _arguments("train", train), checks.flag("lazy", lazy), seed)
    if isinstance(test, float):
        first, second = shared_out(inputs, labels, test, seed)
    elif test is None:
        raise ValueError("test must be the arguments of the test part, or the share to hold out, such as 0.2, got None")
    else:
        other, target, tested = read_part(spec, _arguments("test", test), lazy, seed)
        first, second = (inputs, labels), (other, _renumbered(target, tested, made))
    if (second[0].shape[1:], second[0].dtype) != (inputs.shape[1:], inputs.dtype):
        what = f"{list(inputs.shape[1:])} of {inputs.dtype} as those of train"
        raise ValueError(f"test must have inputs {what}, got {list(second[0].shape[1:])} of {second[0].dtype}")
    fields = pixels(pixel_mean, pixel_deviation, inputs.shape[1]) if inputs.dtype == torch.uint8 else {}
    return assembled("dataset", first, second, _names(made, torch.cat([first[1], second[1]])), lazy, **fields)


def _arguments(key: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{key} must be a mapping of arguments, got {value!r}")
    return value or {}


def _renumbered(labels: Tensor, data: Any, trained: Any) -> Tensor:
    """Labels of the test part as indices of the training part's classes, by their names where both parts name them.

    Errors: ValueError naming a class that the training part has not.
    """
    own, known = (getattr(part, "classes", None) for part in (data, trained))
    if not all(isinstance(names, (list, tuple)) for names in (own, known)) or list(own or ()) == list(known or ()):
        return labels
    places = {str(name): place for place, name in enumerate(known or ())}
    used = [str(own[label]) if label < len(own) else label for label in labels.unique().tolist()]  # type: ignore[index]
    for name in used:
        if name not in places:
            raise ValueError(f"test must have classes of train ({', '.join(places)}), got {name!r}")
    found = dict(zip(labels.unique().tolist(), (places[name] for name in used), strict=True))
    return torch.tensor([found[label] for label in labels.tolist()])


def _names(data: Any, labels: Tensor) -> list[str]:
    """The classes' names that a Dataset has, if it has one for each; else their numbers."""
    known, most = getattr(data, "classes", None), 1 + int(labels.max())
    return [str(name) for name in (known if isinstance(known, (list, tuple)) and len(known) >= most else range(most))]
