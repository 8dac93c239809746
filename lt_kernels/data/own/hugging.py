"""The data set hf: pictures of the library datasets, from a folder on disk or by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.images import fitted
from lt_kernels.data.lazy import LazyRows
from lt_kernels.data.own.assemble import assembled, check_imbalance, crops_of, pixels, shared_out, side_of
from lt_kernels.system.files import FileError


class PictureColumn(LazyRows):
    """The pictures of a column as something that can be used like a uint8 tensor [N, 3, crop, crop] on the CPU."""

    dtype = torch.uint8

    def __init__(self, data: Any, column: str, resize: int, crop: int, threads: int = 0) -> None:
        super().__init__(threads)
        self.data, self.column, self.resize, self.crop = data, column, resize, crop

    def __len__(self) -> int:
        return len(self.data)

    def read(self, row: int) -> Tensor:
        """One picture, uint8 [3, crop, crop]. Errors: FileError naming the row."""
        try:
            return fitted(self.data[row][self.column], self.resize, self.crop)
        except Exception as error:  # a damaged picture makes decoders raise errors of any kind
            raise FileError(f"row {row} of the column {self.column!r} cannot be read as a picture: {error}") from error

    @property
    def shape(self) -> torch.Size:
        """[N, 3, crop, crop]."""
        return torch.Size((len(self), 3, self.crop, self.crop))

    def subset(self, index: Tensor, crop: int | None = None) -> PictureColumn:
        """The pictures of some rows, int64 [M]; `crop` None leaves their size as it is."""
        side = self.crop if crop is None else crop
        return PictureColumn(self.data.select(index.tolist()), self.column, self.resize, side, self.threads)


def _splits(path: str, name: str | None) -> Any:
    """All splits of a data set: of a folder that `save_to_disk` wrote, or what `load_dataset` finds."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("hf needs datasets: pip install 'lt-kernels[integrations]'") from error
    try:
        if any((Path(path) / one).is_file() for one in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, name)
    except Exception as error:  # of the library, and of those that it reads and fetches by
        raise ValueError(f"path must name a data set of the library datasets, got {path!r}: {error}") from error
    return found if isinstance(found, dict) else {"train": found}


def _split(splits: Any, key: str, name: str) -> Any:
    if name not in splits:
        raise ValueError(f"{key} must be one of the splits {', '.join(splits)}, got {name!r}")
    return splits[name]


def _column(data: Any, key: str, given: str | None, kind: str) -> str:
    """The column that is named, or else the only one whose feature is of a kind."""
    if given is not None:
        if given not in data.features:
            raise ValueError(f"{key} must be one of the columns {', '.join(data.features)}, got {given!r}")
        return given
    fitting = [name for name, feature in data.features.items() if type(feature).__name__ == kind]
    if len(fitting) != 1:
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in data.features.items())
        raise ValueError(f"{key} must name a column, because {len(fitting)} of them are of {kind}: {columns}")
    return fitting[0]


def _labels(data: Any, column: str) -> tuple[list[Any], list[str]]:
    """The values of the label's column, and the classes' names: those of ClassLabel, or else the values in order."""
    values = list(data[column])
    known = getattr(data.features[column], "names", None)
    wrong = next((value for value in values if isinstance(value, bool) or not isinstance(value, (int, str))), 0)
    if wrong != 0:
        raise ValueError(f"label must name a column of class indices or names, {column!r} has {wrong!r}")
    return values, list(known or map(str, sorted(set(values))))


def _named(data: Any, column: str) -> list[Any]:
    """The values of a label's column, those of ClassLabel by name: each split may number its classes otherwise."""
    values, names = list(data[column]), getattr(data.features[column], "names", None)
    return values if names is None else [names[value] if 0 <= value < len(names) else value for value in values]


def _indices(values: list[Any], names: list[str], numbered: bool, part: str) -> Tensor:
    """Class indices, int64."""
    places = {name: place for place, name in enumerate(names)}
    found = [value if numbered else places.get(str(value), -1) for value in values]
    for row, place in enumerate(found):
        if not 0 <= place < len(names):
            raise ValueError(f"label must be a class of the training split, {part} has {values[row]!r} in row {row}")
    return torch.tensor(found, dtype=torch.int64)


@register("hf")
def hf(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    path: str | None = None,
    name: str | None = None,
    image: str | None = None,
    label: str | None = None,
    train: str = "train",
    test: str | float = "test",
    resize: int | None = None,
    train_crop: int | None = None,
    crop: int | None = None,
    pixel_mean: Sequence[float] | None = None,
    pixel_deviation: Sequence[float] | None = None,
    lazy: bool = True,
    threads: int = 0,
) -> LongTailedData:
    """Pictures of a data set of the library datasets: uint8 [N, 3, side, side], read lazily, and target int64 [N].

    path: a folder that `save_to_disk` wrote, or what `load_dataset` takes: a folder of files, or a name, which the
    library fetches unless HF_HUB_OFFLINE is 1; `name` is that of the configuration. image, label: the columns (those of
    the features Image and ClassLabel, where there is one of each); a label without ClassLabel is any number or text,
    and the classes are its values in the training split, in order. train, test: the splits; a number in (0, 1) as
    `test` holds out that share of each class. All others are as for the data set `folder`.
    Errors: ValueError naming the argument; FileError naming the row of a picture, when it is read.
    """
    check_imbalance("hf", imbalance)
    if not isinstance(path, str) or not path:
        raise ValueError(f"path must name a folder or a data set of the library datasets, got {path!r}")
    splits = _splits(path, name)
    own = _split(splits, "train", train)
    columns = _column(own, "image", image, "Image"), _column(own, "label", label, "ClassLabel")
    values, names = _labels(own, columns[1])
    known = hasattr(own.features[columns[1]], "names")
    labels = _indices(values, names, known, train)
    side = side_of(own[0][columns[0]].size, resize)
    cut, test_cut = crops_of(side, train_crop, crop)
    inputs = PictureColumn(own, columns[0], side, cut, threads)
    if isinstance(test, float):
        first, second = shared_out(inputs, labels, test, seed, test_cut)
    else:
        other = _split(splits, "test", str(test))
        found = _named(other, columns[1])
        numbered = known and all(isinstance(value, int) for value in found)  # of a split that names no classes
        target = _indices(found, names, numbered, str(test))
        first, second = (inputs, labels), (PictureColumn(other, columns[0], side, test_cut, threads), target)
    return assembled("hf", first, second, names, lazy, **pixels(pixel_mean, pixel_deviation))
