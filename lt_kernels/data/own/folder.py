"""The data set folder: pictures in a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.images import ImageList, opened_picture
from lt_kernels.data.own.assemble import assembled, check_imbalance, crops_of, pixels, shared_out, side_of
from lt_kernels.system.files import FileError, as_path

# of the formats that are read
SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Found(NamedTuple):
    """The pictures of a folder: their paths from it, their classes, and the classes' names."""

    folder: Path
    files: list[str]
    labels: list[int]
    classes: list[str]


def find_pictures(folder: Path) -> Found:
    """The pictures in each class's folder, and in folders in it, in the order of their names.

    Files whose name begins with a dot, or does not end as a picture's, are left out.
    Errors: FileError naming the folder that has no folders for classes.
    """
    if not folder.is_dir():
        hint = "where the classes' folders lie in root itself, data_options.test is the share to hold out, such as 0.2"
        raise FileError(f"the folder {str(folder)!r} of pictures is missing; {hint}")
    classes = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not classes:
        raise FileError(f"the folder {str(folder)!r} must have a folder for each class, got none")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(str(path.relative_to(folder)) for path in (folder / name).rglob("*") if is_picture(path))
        files += inside
        labels += [label] * len(inside)
    return Found(folder, files, labels, classes)


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _full(found: Found) -> Found:
    """The same, if each of its classes has a picture."""
    empty = [name for label, name in enumerate(found.classes) if label not in set(found.labels)]
    if empty:
        ends = ", ".join(sorted(SUFFIXES))
        raise FileError(f"the folder {str(found.folder / empty[0])!r} must have a picture ({ends}), got none")
    return found


def _alike(train: Found, test: Found) -> Found:
    """The test pictures, if they have the folders that those for training have."""
    for more, less in ((train, test), (test, train)):
        missing = sorted(set(more.classes) - set(less.classes))
        if missing:
            what = f"the classes of {str(more.folder)!r}, got no folder for {', '.join(map(repr, missing[:3]))}"
            hint = "; an empty folder stands for a class without test pictures" if less is test else ""
            raise FileError(f"the folder {str(less.folder)!r} must have {what}{hint}")
    return test


def _list(found: Found, sizes: Sequence[int], threads: int) -> ImageList:
    return ImageList(found.files, found.folder, sizes[0], sizes[1], threads)


@register("folder")
def folder(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    train: str = "train",
    test: str | float | None = None,
    resize: int | None = None,
    train_crop: int | None = None,
    crop: int | None = None,
    pixel_mean: Sequence[float] | None = None,
    pixel_deviation: Sequence[float] | None = None,
    lazy: bool = True,
    threads: int = 0,
) -> LongTailedData:
    """Pictures in root/train/CLASS and root/test/CLASS: an `images.ImageList`, uint8 [N, 3, side, side], target int64.

    Classes are numbered in the order of their folders' names. train, test: the names of the two folders in `root`
    (test: "test", or else "val"). Where `test` is a number in (0, 1), that share of each class's pictures is held out,
    drawn with `seed`, and the classes' folders lie in root/train or, where that is not there, in `root`. Each
    picture's shorter side is scaled to `resize` (that of the first picture, at most 64), and its middle cut out:
    `train_crop` pixels for training, `crop` for the test (all of it). pixel_mean, pixel_deviation: what a network takes
    off and divides by (ImageNet's). lazy: read when a batch is asked for, by `threads` threads (0: one a core), and not
    once into memory. imbalance must be None; cache_dir is not used.
    Errors: ValueError naming the argument; FileError naming the folder or the picture, when it is read.
    """
    check_imbalance("folder", imbalance)
    if root is None:
        raise ValueError("root must name a folder of pictures, got None")
    where = as_path("root", root)
    shared = isinstance(test, (int, float)) and not isinstance(test, bool)
    own = where / train if not shared or (where / train).is_dir() else where
    found = _full(find_pictures(own))
    with opened_picture(own / found.files[0]) as first:
        side = side_of(first.size, resize)
    cut, test_cut = crops_of(side, train_crop, crop)
    labels = torch.tensor(found.labels, dtype=torch.int64)
    inputs = _list(found, (side, cut), threads)
    if shared:
        first, second = shared_out(inputs, labels, float(test), seed, test_cut)  # type: ignore[arg-type]
    else:
        name = ("test" if (where / "test").is_dir() else "val") if test is None else str(test)
        other = _alike(found, find_pictures(where / name))
        target = torch.tensor(other.labels, dtype=torch.int64)
        first, second = (inputs, labels), (_list(other, (side, test_cut), threads), target)
    fields = pixels(pixel_mean, pixel_deviation)
    return assembled("folder", first, second, found.classes, lazy, resize=side, **fields)
