"""Images that stay in their files until a batch of them is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_kernels import checks

LARGEST_PART = 256  # images that a split decodes at a time: 1,024 of them are a gigabyte once they are floats


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs pillow: pip install 'lt-kernels[train]'") from error
    return Image


def decode(file: str | Path, resize: int, crop: int) -> Tensor:
    """The middle of a file's picture in RGB, its shorter side scaled to `resize` before: uint8 [3, crop, crop].

    Bilinear over the area that a pixel covers. Errors: ValueError naming the file that is missing or no picture.
    """
    image = _pillow()
    try:
        with image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read as a picture: {error}"
        raise ValueError(f"the image {str(file)!r} {reason}") from error
    width, height = picture.size
    short = min(width, height)
    size = (int(resize * width / short), int(resize * height / short))  # the longer side is rounded down
    left, top = (round((length - crop) / 2) for length in size)
    picture = picture.resize(size, image.Resampling.BILINEAR).crop((left, top, left + crop, top + crop))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


class ImageList:
    """Pictures in files as something that can be used like a uint8 tensor [N, 3, crop, crop] on the CPU.

    What a loader and a prediction need: len, `shape`, `device`, `dtype`, `index_select(0, rows)` and `split(size)`;
    and `prefetch(rows)` for a loader that knows its next batch. Pictures are decoded by a pool of `threads` threads (0:
    one a core). Errors: ValueError naming the argument; when a batch is read, naming the file.
    """

    device = torch.device("cpu")
    dtype = torch.uint8

    def __init__(
        self, files: Sequence[str], root: str | Path = "", resize: int = 256, crop: int = 224, threads: int = 0
    ) -> None:
        _pillow()
        self.files, self.root = list(files), Path(root)
        self.resize, self.crop = checks.whole("resize", resize), checks.whole("crop", crop)
        if crop > resize:
            raise ValueError(f"crop must be at most resize = {resize}, got {crop}")
        self.threads = checks.whole("threads", threads, 0) or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[list[int], list[Future[Tensor]]] = ([], [])

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        """[N, 3, crop, crop]."""
        return torch.Size((len(self.files), 3, self.crop, self.crop))

    def _begin(self, rows: Sequence[int]) -> list[Future[Tensor]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        return [self._pool.submit(decode, self.root / self.files[row], self.resize, self.crop) for row in rows]

    @staticmethod
    def _end(started: list[Future[Tensor]]) -> Tensor:
        try:
            return torch.stack([one.result() for one in started])
        finally:
            for one in started:
                one.cancel()

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The pictures of some rows, int64 [M]: uint8 [M, 3, crop, crop]; `dim` is 0."""
        if dim != 0:
            raise ValueError(f"dim must be 0, got {dim}")
        rows, (known, started) = index.tolist(), self._ahead
        if rows != known:
            return self._end(self._begin(rows))
        self._ahead = ([], [])
        return self._end(started)

    def prefetch(self, index: Tensor) -> None:
        """Begin to decode some rows, int64 [M]: an `index_select` of the same rows then has less to wait for."""
        for one in self._ahead[1]:
            one.cancel()
        self._ahead = (index.tolist(), self._begin(index.tolist()))

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
        return {**self.__dict__, "_pool": None, "_ahead": ([], [])}  # a pool of threads is of its process
