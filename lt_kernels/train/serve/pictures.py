"""Pictures in files, read, scaled and cut as the pictures that a run was tested on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lt_kernels.data import LongTailedData
from lt_kernels.data.images import ImageList
from lt_kernels.data.own.folder import is_picture
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.serve.scoring import Standardized

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow makes pictures grey


class GreyList(ImageList):
    """Pictures in files as uint8 [N, 1, crop, crop]."""

    def read(self, row: int) -> Tensor:
        """One picture, decoded here and now."""
        colours = super().read(row).double() * torch.tensor(GREY, dtype=torch.float64).view(3, 1, 1)
        return colours.sum(0, keepdim=True).round().to(torch.uint8)

    @property
    def shape(self) -> torch.Size:
        """[N, 1, crop, crop]."""
        return torch.Size((len(self.files), 1, self.crop, self.crop))


def files_of(paths: Sequence[str]) -> list[str]:
    """The files that paths name: a folder stands for the pictures in it and below, by name.

    Errors: ConfigError naming the path that is missing, or the folder without a picture.
    """
    found: list[str] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f"--input must name files or folders, got {str(path)!r}, which is missing")
        inside = [path] if not path.is_dir() else sorted(file for file in path.rglob("*") if is_picture(file))
        if not inside:
            raise ConfigError(f"--input must name folders with pictures, got {str(path)!r} with none")
        found += map(str, inside)
    return found


def pictures_of(files: Sequence[str], data: LongTailedData) -> ImageList:
    """Pictures as bytes [N, channels, height, width], as `pixels_of` takes them.

    Errors: ConfigError where the inputs of the data set are no square pictures.
    """
    channels, *size = check_pictures(data)
    test: Any = data.test[0]
    resize, threads = (test.resize, test.threads) if isinstance(test, ImageList) else (data.resize or size[0], 0)
    return (ImageList if channels == 3 else GreyList)(files, "", resize, size[0], threads)


def check_pictures(data: LongTailedData) -> list[int]:
    """Channels, height and width of the pictures that a data set has for inputs.

    Errors: ConfigError where it has none, or it is not known how they are made from bytes.
    """
    shape = list(data.test[0].shape[1:])
    if data.input_kind != "image" or len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ConfigError(f"--input must be left out for {data.name}, whose inputs {shape} are no square pictures")
    if not takes_pictures(data):
        raise ConfigError(f"--input must be left out for {data.name}: how its inputs are made of bytes is not known")
    return shape


def takes_pictures(data: LongTailedData) -> bool:
    """Whether it is known how the inputs of a data set are made of pictures as bytes."""
    return _takes_bytes(data) or {"pixel_mean", "pixel_deviation"} <= data.facts.keys()


def _takes_bytes(data: LongTailedData) -> bool:
    return bool(data.pixel_mean) or data.test[0].dtype == torch.uint8


def pixels_of(data: LongTailedData) -> nn.Module | None:
    """From bytes to the numbers that the network takes, where the network does not begin with that itself."""
    if _takes_bytes(data):
        return None
    return Standardized(data.facts["pixel_mean"], data.facts["pixel_deviation"])
