"""The data set cityscapes: what is each pixel of a street scene part of? Read from folders as they are published."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import IGNORED, LongTailedData, register
from lt_kernels.data.cache import Arrays, default_cache_dir, kept
from lt_kernels.data.images import decode_whole, opened_picture, same_size
from lt_kernels.data.lazy import LazyRows
from lt_kernels.system.files import FileError, as_path

# The 19 classes that are trained and judged, by their label ids (Cordts et al., 2016); every other id is ignored.
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
PICTURES, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"
LAYOUT = f"leftImg8bit/PART/CITY/NAME{PICTURES} and gtFine/PART/CITY/NAME{LABELS}, PART train or val"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the stored weights were trained with


class Size(NamedTuple):
    """Of every picture, in pixels."""

    height: int
    width: int


class Pictures(LazyRows):
    """Whole pictures in RGB like a uint8 tensor [N, 3, height, width], read when asked for. Errors: FileError naming
    the file, also one of another size.
    """

    dtype = torch.uint8

    def __init__(self, files: Sequence[Path], size: Size, threads: int = 0) -> None:
        super().__init__(threads)
        self.files, self.size = list(files), size

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int) -> Tensor:
        """One picture, uint8 [3, height, width]."""
        return decode_whole(self.files[row], *self.size)

    @property
    def shape(self) -> torch.Size:
        """[N, 3, height, width]."""
        return torch.Size((len(self.files), 3, *self.size))


class LabelMaps(Pictures):
    """The class of each pixel like an int64 tensor [N, height, width], IGNORED where a label id is not in CLASSES."""

    dtype = torch.int64

    def read(self, row: int) -> Tensor:
        """One map of classes, int64 [height, width]."""
        with opened_picture(self.files[row]) as opened:
            same_size(opened, *self.size)
            if opened.mode != "L":
                raise ValueError(f"label ids must be grey of 8 bits, mode L, got mode {opened.mode}")
            ids = np.array(opened)
        return _TABLE[torch.from_numpy(ids).long()]

    @property
    def shape(self) -> torch.Size:
        """[N, height, width]."""
        return torch.Size((len(self.files), *self.size))


_TABLE = torch.full((256,), IGNORED).index_copy(0, torch.tensor(list(CLASSES)), torch.arange(len(CLASSES)))


def _folders(root: str | Path | None) -> list[Path]:
    """The folders of pictures and of label maps. Errors: ValueError naming what is missing, and the layout."""
    if root is None:
        raise ValueError(f"root must name the folder of Cityscapes with {LAYOUT}, got None")
    found = [as_path("root", root) / name for name in ("leftImg8bit", "gtFine")]
    missing = [str(folder / part) for folder in found for part in ("train", "val") if not (folder / part).is_dir()]
    if missing:
        raise ValueError(
            f"root must hold Cityscapes as {LAYOUT}; missing: {', '.join(missing)}. Nothing is downloaded: "
            "docs/recipes.md says where it all is"
        )
    return found


def _part(folders: Sequence[Path], part: str) -> tuple[list[Path], list[Path]]:
    """Pictures and their label maps, by city and name."""
    pictures = sorted((folders[0] / part).glob(f"*/*{PICTURES}"))
    if not pictures:
        raise ValueError(f"root must hold Cityscapes as {LAYOUT}; no picture in {str(folders[0] / part)!r}")
    labels = [folders[1] / part / file.parent.name / (file.name.removesuffix(PICTURES) + LABELS) for file in pictures]
    for file, label in zip(pictures, labels):
        if not label.is_file():
            raise FileError(f"the label map {str(label)!r} of the image {str(file)!r} is missing")
    return pictures, labels


def _count(maps: LabelMaps) -> Arrays:
    """How many pixels each class has in all maps, and in how many maps it is."""
    pixels, scenes = (torch.zeros(len(CLASSES), dtype=torch.int64) for _ in range(2))
    for part in maps.split(maps.threads):
        for one in part:
            found = torch.bincount(one[one != IGNORED], minlength=len(CLASSES))
            pixels += found
            scenes += found > 0
    return {"pixels": pixels.numpy(), "scenes": scenes.numpy()}


def _counted(maps: LabelMaps, root: Path, cache_dir: str | Path | None) -> tuple[Tensor, Tensor]:
    """What `_count` finds, kept in a file that belongs to these label maps: their names, sizes and times of change."""
    stats = [(file.relative_to(root).as_posix(), file.stat()) for file in maps.files]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    folder = default_cache_dir() if cache_dir is None else as_path("cache_dir", cache_dir)
    digest = hashlib.sha256(repr(listing).encode()).hexdigest()[:16]
    counted = kept(folder / f"cityscapes-{digest}.arrays", lambda: _count(maps))
    pixels, scenes = (torch.from_numpy(counted[name]) for name in ("pixels", "scenes"))
    if int(pixels.min()) == 0:
        none = list(CLASSES.values())[int(pixels.argmin())]
        raise ValueError(f"root must hold training pixels of each of {len(CLASSES)} classes, got none of {none!r}")
    return pixels, scenes


@register("cityscapes")
def cityscapes(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    threads: int = 0,
) -> LongTailedData:
    """Tell of each pixel of a street scene which of 19 classes it is part of (Cordts et al., 2016): inputs like uint8
    [N, 3, H, W], target like int64 [N, H, W], both read when a batch is asked for.

    root: the folder with leftImg8bit and gtFine as they are published; the part train is trained on, val is the test.
    Label ids outside the 19 classes are ignored. class_counts counts training pixels, group_counts the training scenes
    with such pixels: counted once, which takes minutes, and kept in `cache_dir` with a checksum. threads: that decode
    (0: one a core). imbalance must be None; seed is not used. Errors: ValueError naming the argument and what is
    missing; FileError naming a file that does not fit.
    """
    if imbalance is not None:
        raise ValueError(f"imbalance must be None for cityscapes, whose counts are its own, got {imbalance}")
    checks.whole("threads", threads, 0)
    folders = _folders(root)
    listed = {part: _part(folders, part) for part in ("train", "val")}
    with opened_picture(listed["train"][0][0]) as opened:
        size = Size(opened.height, opened.width)
    train, test = (
        (Pictures(pictures, size, threads), LabelMaps(labels, size, threads)) for pictures, labels in listed.values()
    )
    pixels, scenes = _counted(train[1], folders[1], cache_dir)
    return LongTailedData(
        name="cityscapes",
        train=cast(tuple[Tensor, Tensor], train),
        test=cast(tuple[Tensor, Tensor], test),
        class_counts=pixels,
        num_classes=len(CLASSES),
        input_kind="scene",
        class_names=tuple(CLASSES.values()),
        group_counts=scenes,
        units=("pixels", "scenes"),
        pixel_mean=MEAN,
        pixel_deviation=DEVIATION,
    )
