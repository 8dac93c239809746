"""Rows that stay in their files until a batch of them is asked for."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.core import checks

MOST = 16  # rows that a thread takes at a time: to hand it one costs as much as a third of a small drawing
LARGEST_PART = 256  # rows that a split reads at a time: 1,024 photographs are a gigabyte once they are floats


class _Begun(NamedTuple):
    """Rows that are being read, some at a time, by threads of the process with this id."""

    process: int
    rows: list[int]
    results: list[Future[list[Tensor]]]


_NONE = _Begun(0, [], [])


class LazyRows(ABC):
    """Something that can be used like a tensor [N, ...] on the CPU, each row of which `read` makes from a file.

    What a loader and a prediction need: len, `[row]`, `shape`, `ndim`, `device`, `dtype`, `index_select(0, rows)` and
    `split(size)`; and `prefetch(rows)` for a loader that knows its next batch. Rows are read by a pool of `threads`
    threads (0: one a core), of which each process has its own: it may be used before and after a fork, and be sent to
    workers. Errors: those of `read`, IndexError naming the row.
    """

    device = torch.device("cpu")
    dtype: torch.dtype

    def __init__(self, threads: int = 0) -> None:
        self.threads = checks.whole("threads", threads, 0) or os.cpu_count() or 1
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # with the id of the process whose threads they are
        self._ahead = _NONE

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, row: int) -> Tensor:
        """One row, read here and now."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """[N, ...]."""

    @property
    def ndim(self) -> int:
        """How many dimensions the shape has."""
        return len(self.shape)

    def __getitem__(self, row: int) -> Tensor:
        """One row, read here and now; a negative one counts from the end."""
        return self.read(range(len(self))[operator.index(row)])

    def _begin(self, rows: Sequence[int]) -> _Begun:
        wrong = [row for row in rows if not 0 <= row < len(self)]
        if wrong:
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {wrong[0]}")
        process = os.getpid()
        if self._pool is None or self._pool[0] != process:
            self._pool = (process, ThreadPoolExecutor(self.threads))
        rows, some = list(rows), max(1, min(MOST, len(rows) // (4 * self.threads)))
        parts = (rows[start : start + some] for start in range(0, len(rows), some))
        return _Begun(process, rows, [self._pool[1].submit(self._read, part) for part in parts])

    def _read(self, rows: Sequence[int]) -> list[Tensor]:
        return [self.read(row) for row in rows]

    def _end(self, begun: _Begun) -> Tensor:
        if begun.process != os.getpid():  # a fork came between: the threads that would have finished are not here
            begun = self._begin(begun.rows)
        if not begun.rows:
            return torch.empty(0, *self.shape[1:], dtype=self.dtype)
        try:
            return torch.stack([row for one in begun.results for row in one.result()])
        finally:
            self._leave(begun)

    @staticmethod
    def _leave(begun: _Begun) -> None:
        if begun.process == os.getpid():
            for one in begun.results:
                one.cancel()

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows, int64 [M]: [M, ...]; `dim` is 0."""
        if dim != 0:
            raise ValueError(f"dim must be 0, got {dim}")
        rows = index.tolist()
        ahead = self._ahead
        if rows != ahead.rows:
            return self._end(self._begin(rows))
        self._ahead = _NONE
        return self._end(ahead)

    def prefetch(self, index: Tensor) -> None:
        """Begin to read some rows, int64 [M]: an `index_select` of the same rows then has less to wait for."""
        self._leave(self._ahead)
        self._ahead = self._begin(index.tolist())

    def split(self, split_size: int) -> Iterator[Tensor]:
        """All rows in order, at most `split_size` and at most 256 at a time; while one part is used, the next one is
        read.
        """
        size = min(checks.whole("split_size", split_size), LARGEST_PART)
        rows = range(len(self))
        waiting = self._begin(rows[:size])
        for start in range(0, len(self), size):
            following = self._begin(rows[start + size : start + 2 * size])
            yield self._end(waiting)
            waiting = following

    def subset(self, index: Tensor, crop: int | None = None) -> LazyRows:
        """Some rows, int64 [M], still in their files; pictures may be cut to another `crop`, where they are cut."""
        if crop is not None:
            raise ValueError(f"crop must be None for rows that are not cut, got {crop}")
        return Subset(self, index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_ahead": _NONE}  # a pool of threads is of its process


class Subset(LazyRows):
    """Some rows, int64 [M], of others."""

    def __init__(self, rows: LazyRows, index: Tensor) -> None:
        super().__init__(rows.threads)
        self.rows, self.index, self.dtype = rows, index.tolist(), rows.dtype

    def __len__(self) -> int:
        return len(self.index)

    def read(self, row: int) -> Tensor:
        """One row, read here and now."""
        return self.rows.read(self.index[row])

    @property
    def shape(self) -> torch.Size:
        """[M, ...]."""
        return torch.Size((len(self.index), *self.rows.shape[1:]))
