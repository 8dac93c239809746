"""Long-tailed photographs in folders with lists of files: imagenet-lt, places-lt, inaturalist2018 and sun397-lt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.images import ImageList
from lt_kernels.data.lists import read_list
from lt_kernels.system.files import FileError, as_path


class Source(NamedTuple):
    """A published data set: what it is, how many classes it has, its lists, and how its pixels are centred."""

    title: str
    classes: int
    train_list: str
    test_list: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, which most published runs use
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)


SOURCES = {
    "imagenet-lt": Source(
        "ImageNet-LT, 115,846 images of 1,000 classes (Liu et al., 2019)",
        1000,
        "ImageNet_LT_train.txt",
        "ImageNet_LT_test.txt",
    ),
    "places-lt": Source(
        "Places-LT, 62,500 images of 365 classes (Liu et al., 2019)", 365, "Places_LT_train.txt", "Places_LT_test.txt"
    ),
    "inaturalist2018": Source(
        "iNaturalist 2018, 437,513 images of 8,142 species (Van Horn et al., 2018)",
        8142,
        "iNaturalist18_train.txt",
        "iNaturalist18_val.txt",
        (0.466, 0.471, 0.380),
        (0.195, 0.194, 0.192),
    ),
    "sun397-lt": Source(
        "a long-tailed part of SUN397 with 397 classes (Xiao et al., 2010)",
        397,
        "SUN397_LT_train.txt",
        "SUN397_LT_test.txt",
    ),
}


def _part(root: Path, file: Path, classes: int, resize: int, crop: int, threads: int) -> tuple[ImageList, Tensor]:
    """The pictures and class indices of a list, the first of which must exist."""
    listed = read_list(file)
    most = max(range(len(listed.labels)), key=listed.labels.__getitem__)
    if listed.labels[most] >= classes:
        where = f"in {listed.places[most]} of the list {str(file)!r}"
        raise FileError(
            f"num_classes must be above the largest label {listed.labels[most]}, got {classes}; it is {where}"
        )
    if not (root / listed.files[0]).is_file():
        raise ValueError(
            f"root must be the folder where the lists' paths begin, got {str(root)!r}: no {listed.files[0]} in it"
        )
    return ImageList(listed.files, root, resize, crop, threads), torch.tensor(listed.labels)


def _places(source: Source, root: str | Path | None, lists: str | Path | None, names: tuple[str, str]) -> list[Path]:
    """The folder of the images, and the two lists; an error says which of them are missing, and where they belong."""
    if root is None:
        raise ValueError(f"root must name the folder of the images of {source.title}, got None")
    folder, where = as_path("root", root), as_path("lists", root if lists is None else lists)
    files = [where / as_path(key, name) for key, name in zip(("train_list", "test_list"), names)]
    missing = [str(path) for path in (folder, *files) if not path.exists()]
    if missing:
        raise ValueError(
            f"root must hold the images of {source.title}, and `lists` (or root) the files `train_list` and "
            f"`test_list`; missing: {', '.join(missing)}. Nothing is downloaded: docs/recipes.md says where it all is"
        )
    return [folder, *files]


def read_folder(
    name: str,
    imbalance: float | None,
    root: str | Path | None,
    lists: str | Path | None,
    train_list: str | None,
    test_list: str | None,
    num_classes: int | None,
    resize: int,
    train_crop: int,
    crop: int,
    threads: int,
) -> LongTailedData:
    """Read one of SOURCES; the arguments are those of the readers."""
    source = SOURCES[name]
    if imbalance is not None:
        raise ValueError(f"imbalance must be None for {name}, whose counts are the lists' own, got {imbalance}")
    for key, value in (("train_crop", train_crop), ("crop", crop)):
        if checks.whole(key, value) > resize:
            raise ValueError(f"{key} must be at most resize = {resize}, got {value}")
    classes = checks.whole("num_classes", source.classes if num_classes is None else num_classes)
    names = (train_list or source.train_list, test_list or source.test_list)
    folder, *files = _places(source, root, lists, names)
    train, test = (_part(folder, file, classes, resize, size, threads) for file, size in zip(files, (train_crop, crop)))
    counts = torch.bincount(train[1], minlength=classes)
    if int(counts.min()) == 0:
        none = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"the list {str(files[0])!r} must name an image of each of {classes} classes, got none of {none}"
        )
    return LongTailedData(
        name=name,
        train=cast(tuple[Tensor, Tensor], train),
        test=cast(tuple[Tensor, Tensor], test),
        class_counts=counts,
        num_classes=classes,
        input_kind="image",
        class_names=tuple(str(index) for index in range(classes)),
        pixel_mean=source.mean,
        pixel_deviation=source.deviation,
    )


def _reader(name: str) -> Callable[..., LongTailedData]:
    def read(
        imbalance: float | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        root: str | Path | None = None,
        lists: str | Path | None = None,
        train_list: str | None = None,
        test_list: str | None = None,
        num_classes: int | None = None,
        resize: int = 256,
        train_crop: int = 256,
        crop: int = 224,
        threads: int = 0,
    ) -> LongTailedData:
        return read_folder(
            name, imbalance, root, lists, train_list, test_list, num_classes, resize, train_crop, crop, threads
        )

    source = SOURCES[name]
    read.__name__ = name.replace("-", "_")
    read.__doc__ = f"""{source.title}: an `images.ImageList` of uint8 [N, 3, side, side] and target int64 [N].

    root: the folder where the lists' paths begin. lists: the folder of the lists (None: root). train_list, test_list:
    their names, {source.train_list} and {source.test_list} unless given; texts with "path label" a line, or .json files
    with `images` and `annotations`. num_classes: {source.classes} unless given. Each image's shorter side is scaled to
    `resize`, and its middle cut out: `train_crop` pixels for training, `crop` for the test. threads: that decode (0:
    one a core). imbalance must be None; seed and cache_dir are not used. Errors: ValueError naming the argument, and
    what is missing where.
    """
    return read


imagenet_lt, places_lt, inaturalist2018, sun397_lt = (register(name)(_reader(name)) for name in SOURCES)
