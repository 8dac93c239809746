"""Images that stay in their files until a batch of them is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.lazy import LazyRows
from lt_kernels.system.files import FileError, as_path

MOST_PIXELS = 2**26  # of a picture, as it is stored and as it is scaled: 192 MiB of RGB
# Pillow also knows formats that start other programs (EPS), or that have no mark by which they are known.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs pillow: pip install 'lt-kernels[train]'") from error
    Image.init()  # every format's module, now and not in a thread: a fork during an import would leave its lock taken
    return Image


def _scaled(size: tuple[int, int], resize: int) -> tuple[int, int]:
    """Width and height once the shorter side is `resize`; the longer side is rounded down."""
    width, height = size
    short = min(width, height)
    if short < 1:
        raise ValueError(f"it has {width} x {height} pixels")
    scaled = int(resize * width / short), int(resize * height / short)
    for how, (wide, high) in (("", (width, height)), (f" once its shorter side is {resize}", scaled)):
        if wide * high > MOST_PIXELS:
            raise ValueError(f"it has {wide} x {high} pixels{how}, at most {MOST_PIXELS:,} are allowed")
    return scaled


def _rgb(opened: Any) -> Any:
    """A picture in RGB, 8 bits a channel, transparency dropped; its white is white in every mode."""
    mode, image = opened.mode, _pillow()
    if mode.startswith("I;16") or (mode == "I" and opened.format in ("PNG", "PPM")):  # these formats stop at 16 bits
        levels = (np.asarray(opened).astype(np.int64) * 255 + 32767) // 65535
        return image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if mode == "I":
        raise ValueError("it holds 32-bit integers, whose white is not known: save it with 8 or 16 bits a channel")
    if mode == "F":
        values = np.asarray(opened)
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ValueError(f"it holds floats in {values.min():g}..{values.max():g}, which must be in 0..1")
        return image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    return opened.convert("RGBA" if mode in ("P", "PA") and "transparency" in opened.info else "RGB").convert("RGB")


@contextlib.contextmanager
def opened_picture(file: str | Path) -> Iterator[Any]:
    """A file's picture as Pillow opens it, in one of FORMATS. Errors: FileError naming the file that is missing, no
    such picture, or cannot be used as the block under `with` uses it.
    """
    path, image = Path(file), _pillow()
    if not path.is_file():
        raise FileError(f"the image {str(file)!r} is {'no regular file' if path.exists() else 'missing'}")
    try:
        with image.open(path, formats=[name for name in FORMATS if name in image.OPEN]) as opened:
            yield opened
    except Exception as error:  # a damaged file makes decoders raise errors of any kind
        raise FileError(f"the image {str(file)!r} cannot be read as a picture: {error}") from error


def decode(file: str | Path, resize: int, crop: int) -> Tensor:
    """The middle of a file's picture in RGB, its shorter side scaled to `resize` before: uint8 [3, crop, crop].

    Bilinear over the area that a pixel covers. The formats are FORMATS, of several pictures the first. 16-bit grey and
    floats (0..1) are scaled to 8 bits; transparency is dropped and an orientation in EXIF is not applied, as in the
    published runs. A picture has at most MOST_PIXELS pixels, before and after the scaling. Errors: FileError naming
    the file that is missing, no such picture, cut short or too large.
    """
    with opened_picture(file) as opened:
        return fitted(opened, resize, crop)


def fitted(opened: Any, resize: int, crop: int) -> Tensor:
    """What `decode` makes of a picture that Pillow has opened. Errors: ValueError naming what it cannot take."""
    width, height = _scaled(opened.size, resize)
    picture = _rgb(opened)
    left, top = (round((length - crop) / 2) for length in (width, height))
    picture = picture.resize((width, height), _pillow().Resampling.BILINEAR).crop((left, top, left + crop, top + crop))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def decode_whole(file: str | Path, height: int, width: int) -> Tensor:
    """A file's whole picture in RGB, which must have the given size: uint8 [3, height, width], modes as in `decode`.
    Errors: FileError naming the file.
    """
    with opened_picture(file) as opened:
        same_size(opened, height, width)
        picture = _rgb(opened)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def same_size(opened: Any, height: int, width: int) -> None:
    """Refuse a picture of another size, or too large a one. Errors: ValueError naming the sizes."""
    _scaled(opened.size, min(opened.size))
    if opened.size != (width, height):
        raise ValueError(f"it has {opened.width} x {opened.height} pixels, where the others have {width} x {height}")


class ImageList(LazyRows):
    """Pictures in files as something that can be used like a uint8 tensor [N, 3, crop, crop] on the CPU.

    files: paths below `root`; what `decode` says holds of each. They are read as `LazyRows` says, by `threads` threads
    (0: one a core). Errors: TypeError or ValueError naming the argument; when a batch is read, FileError naming the
    file, IndexError naming the row.
    """

    dtype = torch.uint8

    def __init__(
        self, files: Sequence[str], root: str | Path = "", resize: int = 256, crop: int = 224, threads: int = 0
    ) -> None:
        _pillow()
        if isinstance(files, (str, os.PathLike)):
            raise TypeError(f"files must be a sequence of paths, got {files!r}")
        self.files, self.root = list(files), as_path("root", root)
        self.resize, self.crop = checks.whole("resize", resize), checks.whole("crop", crop)
        if resize**2 > MOST_PIXELS:
            raise ValueError(f"resize must be at most {int(MOST_PIXELS**0.5)}, got {resize}")
        if crop > resize:
            raise ValueError(f"crop must be at most resize = {resize}, got {crop}")
        super().__init__(threads)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int) -> Tensor:
        """One picture, uint8 [3, crop, crop], decoded here and now."""
        return decode(self.root / self.files[row], self.resize, self.crop)

    @property
    def shape(self) -> torch.Size:
        """[N, 3, crop, crop]."""
        return torch.Size((len(self.files), 3, self.crop, self.crop))

    def subset(self, index: Tensor, crop: int | None = None) -> ImageList:
        """The pictures of some rows, int64 [M], still in their files; `crop` None leaves their size as it is."""
        files = [self.files[row] for row in index.tolist()]
        return ImageList(files, self.root, self.resize, self.crop if crop is None else crop, self.threads)
