"""The data sets cifar10-lt and cifar100-lt: photographs of 32 x 32 pixels with an exponential tail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.pickles import read_plain
from lt_kernels.data.profiles import choose, exponential_counts
from lt_kernels.system.files import FileError, as_path
from lt_kernels.system.storage import read_regular

# Of the training images of CIFAR-10, as the published runs centre both sets.
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SIDE = 32
LARGEST = 2**30  # bytes of a file; the archives' largest has 155 million


class Archive(NamedTuple):
    """What the "python version" of a CIFAR archive holds."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: tuple[str, str]
    labels: str
    classes: int
    per_class: int


ARCHIVES = {
    "cifar10-lt": Archive(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        ("batches.meta", "label_names"),
        "labels",
        10,
        5000,
    ),
    "cifar100-lt": Archive(
        "cifar-100-python", ("train",), "test", ("meta", "fine_label_names"), "fine_labels", 100, 500
    ),
}


def read_batch(file: Path) -> dict[str, Any]:
    """The dict that a file of the archive holds, its keys as text; the file is read by `pickles`, never unpickled.

    Errors: FileError naming the file that holds something else.
    """
    try:
        return read_plain(read_regular(file, LARGEST))
    except (OSError, ValueError) as error:  # PickleError is one
        raise FileError(f"{str(file)!r} is not a file of the CIFAR archive's python version: {error}") from error


def find_folder(name: str, root: str | Path | None) -> Path:
    """The archive's folder: `root` itself or the folder of the archive's own name in it."""
    archive = ARCHIVES[name]
    advice = f"the python version of the archive unpacked, a folder {archive.folder}, or be that folder"
    if root is None:
        raise ValueError(f"root must name the folder that holds {advice}, got None")
    needed = [*archive.train, archive.test, archive.names[0]]
    places = (as_path("root", root) / archive.folder, as_path("root", root))
    for folder in places:
        if all((folder / file).is_file() for file in needed):
            return folder
    folder = places[0] if places[0].is_dir() else places[1]
    missing = ", ".join(file for file in needed if not (folder / file).is_file())
    raise ValueError(f"root must hold {advice}; got {str(root)!r}: {str(folder)!r} lacks {missing}")


def _part(folder: Path, files: Sequence[str], labels: str, classes: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of some files."""
    parts = [_batch(folder / file, labels, classes) for file in files]
    images, target = (np.concatenate(part) for part in zip(*parts))
    return torch.from_numpy(images).view(-1, 3, SIDE, SIDE), torch.from_numpy(target)


def _batch(file: Path, labels: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    stored = read_batch(file)
    images, target = stored.get("data"), stored.get(labels)
    if not isinstance(images, np.ndarray) or images.shape[1:] != (3 * SIDE * SIDE,) or not isinstance(target, list):
        raise FileError(f"{str(file)!r} must hold `data` uint8 [N, {3 * SIDE * SIDE}] and a list `{labels}`")
    if len(target) != len(images):
        raise FileError(f"{str(file)!r} must have as many `{labels}` as images, got {len(target)} and {len(images)}")
    for place, label in enumerate(target):
        if type(label) is not int or not 0 <= label < classes:
            what = label if type(label) is int and abs(label) < 10**30 else f"a {type(label).__name__}"
            raise FileError(f"{str(file)!r} must have `{labels}` in 0..{classes - 1}, got {what} at {place}")
    return images, np.array(target, np.int64)


def _names(file: Path, key: str, classes: int) -> tuple[str, ...]:
    """The classes' names."""
    names = read_batch(file).get(key)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(one, (bytes, str)) for one in names):
        raise FileError(f"{str(file)!r} must hold a list `{key}` of {classes} names")
    return tuple(one.decode("utf-8", "backslashreplace") if isinstance(one, bytes) else one for one in names)


def _read(name: str, imbalance: float | None, seed: int, root: str | Path | None, samples: str) -> LongTailedData:
    archive = ARCHIVES[name]
    checks.choice("samples", samples, ("drawn", "first"))
    folder = find_folder(name, root)
    meta, key = archive.names
    names = _names(folder / meta, key, archive.classes)
    images, target = _part(folder, archive.train, archive.labels, archive.classes)
    counts = exponential_counts(archive.per_class, archive.classes, 100 if imbalance is None else imbalance)
    kept = choose(target, counts, seed if samples == "drawn" else None)
    return LongTailedData(
        name=name,
        train=(images[kept], target[kept]),
        test=_part(folder, (archive.test,), archive.labels, archive.classes),
        class_counts=torch.tensor(counts),
        num_classes=archive.classes,
        input_kind="image",
        class_names=names,
        pixel_mean=MEAN,
        pixel_deviation=DEVIATION,
    )


@register("cifar10-lt")
def cifar10_lt(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    samples: Literal["drawn", "first"] = "drawn",
) -> LongTailedData:
    """Tell ten kinds of things apart: inputs uint8 [N, 3, 32, 32], target int64 [N] (Krizhevsky, 2009).

    root: the folder that holds the archive's python version unpacked, cifar-10-batches-py. Class c keeps int(5000 *
    (1 / imbalance)^(c / 9)) of its images (Cao et al., 2019; imbalance 100 unless given): `samples` "drawn" with the
    seed, or the "first" ones as they lie. The test set is whole and balanced. `cache_dir` is not used: nothing is
    downloaded or kept.
    Errors: ValueError naming the argument or the files that are missing.
    """
    return _read("cifar10-lt", imbalance, seed, root, samples)


@register("cifar100-lt")
def cifar100_lt(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    samples: Literal["drawn", "first"] = "drawn",
) -> LongTailedData:
    """As `cifar10_lt` with a hundred classes: int(500 * (1 / imbalance)^(c / 99)) images of class c, from
    cifar-100-python.
    """
    return _read("cifar100-lt", imbalance, seed, root, samples)
