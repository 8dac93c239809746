"""Images that stay in their files until a batch of them is asked for."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.system.files import FileError, as_path

LARGEST_PART = 256  # images that a split decodes at a time: 1,024 of them are a gigabyte once they are floats
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


def decode(file: str | Path, resize: int, crop: int) -> Tensor:
    """The middle of a file's picture in RGB, its shorter side scaled to `resize` before: uint8 [3, crop, crop].

    Bilinear over the area that a pixel covers. The formats are FORMATS, of several pictures the first. 16-bit grey and
    floats (0..1) are scaled to 8 bits; transparency is dropped and an orientation in EXIF is not applied, as in the
    published runs. A picture has at most MOST_PIXELS pixels, before and after the scaling. Errors: FileError naming
    the file that is missing, no such picture, cut short or too large.
    """
    path, image = Path(file), _pillow()
    if not path.is_file():
        raise FileError(f"the image {str(file)!r} is {'no regular file' if path.exists() else 'missing'}")
    try:
        with image.open(path, formats=[name for name in FORMATS if name in image.OPEN]) as opened:
            width, height = _scaled(opened.size, resize)
            picture = _rgb(opened)
    except Exception as error:  # a damaged file makes decoders raise errors of any kind
        raise FileError(f"the image {str(file)!r} cannot be read as a picture: {error}") from error
    left, top = (round((length - crop) / 2) for length in (width, height))
    picture = picture.resize((width, height), image.Resampling.BILINEAR).crop((left, top, left + crop, top + crop))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


class _Begun(NamedTuple):
    """Rows whose pictures are being decoded by threads of the process with this id."""

    process: int
    rows: list[int]
    pictures: list[Future[Tensor]]


_NONE = _Begun(0, [], [])


class ImageList:
    """Pictures in files as something that can be used like a uint8 tensor [N, 3, crop, crop] on the CPU.

    What a loader and a prediction need: len, `[row]`, `shape`, `device`, `dtype`, `index_select(0, rows)` and
    `split(size)`; and `prefetch(rows)` for a loader that knows its next batch. Pictures are decoded by a pool of
    `threads` threads (0: one a core), of which each process has its own: a list may be used before and after a fork,
    and be sent to workers. files: paths below `root`; what `decode` says holds of each. Errors: TypeError or ValueError
    naming the argument; when a batch is read, FileError naming the file, IndexError naming the row.
    """

    device = torch.device("cpu")
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
        self.threads = checks.whole("threads", threads, 0) or os.cpu_count() or 1
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # with the id of the process whose threads they are
        self._ahead = _NONE

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        """One picture, uint8 [3, crop, crop], decoded here and now; a negative row counts from the end."""
        return decode(self.root / self.files[operator.index(row)], self.resize, self.crop)

    @property
    def shape(self) -> torch.Size:
        """[N, 3, crop, crop]."""
        return torch.Size((len(self.files), 3, self.crop, self.crop))

    def _begin(self, rows: Sequence[int]) -> _Begun:
        wrong = [row for row in rows if not 0 <= row < len(self)]
        if wrong:
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {wrong[0]}")
        process = os.getpid()
        if self._pool is None or self._pool[0] != process:
            self._pool = (process, ThreadPoolExecutor(self.threads))
        submit = self._pool[1].submit
        started = [submit(decode, self.root / self.files[row], self.resize, self.crop) for row in rows]
        return _Begun(process, list(rows), started)

    def _end(self, begun: _Begun) -> Tensor:
        if begun.process != os.getpid():  # a fork came between: the threads that would have finished are not here
            begun = self._begin(begun.rows)
        if not begun.rows:
            return torch.empty(0, *self.shape[1:], dtype=self.dtype)
        try:
            return torch.stack([one.result() for one in begun.pictures])
        finally:
            self._leave(begun)

    @staticmethod
    def _leave(begun: _Begun) -> None:
        if begun.process == os.getpid():
            for one in begun.pictures:
                one.cancel()

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The pictures of some rows, int64 [M]: uint8 [M, 3, crop, crop]; `dim` is 0."""
        if dim != 0:
            raise ValueError(f"dim must be 0, got {dim}")
        rows = index.tolist()
        ahead = self._ahead
        if rows != ahead.rows:
            return self._end(self._begin(rows))
        self._ahead = _NONE
        return self._end(ahead)

    def subset(self, index: Tensor, crop: int | None = None) -> ImageList:
        """The pictures of some rows, int64 [M], still in their files; `crop` None leaves their size as it is."""
        files = [self.files[row] for row in index.tolist()]
        return ImageList(files, self.root, self.resize, self.crop if crop is None else crop, self.threads)

    def prefetch(self, index: Tensor) -> None:
        """Begin to decode some rows, int64 [M]: an `index_select` of the same rows then has less to wait for."""
        self._leave(self._ahead)
        self._ahead = self._begin(index.tolist())

    def split(self, split_size: int) -> Iterator[Tensor]:
        """All pictures in order, at most `split_size` and at most 256 at a time; while one part is used, the next one
        is decoded.
        """
        size = min(checks.whole("split_size", split_size), LARGEST_PART)
        rows = range(len(self))
        waiting = self._begin(rows[:size])
        for start in range(0, len(self), size):
            following = self._begin(rows[start + size : start + 2 * size])
            yield self._end(waiting)
            waiting = following

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_ahead": _NONE}  # a pool of threads is of its process
