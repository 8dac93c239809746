"""Hold out blocks of a text: test windows for each class, and none that shares a token or its content with training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]


def text_windows(ids: Ints, starts: Ints, context: int, outside: int) -> Ints:
    """Return [T, 2 * context + 1] of `ids`' type: each token with its neighbours, `outside` where its file has none.

    ids [T]: the tokens of all files, one after the other; starts [files + 1]: where each file begins, and T.
    """
    position = np.arange(len(ids))
    file = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    low, high = starts[file], starts[file + 1]
    columns = np.empty((len(ids), 2 * context + 1), ids.dtype)
    for column in range(2 * context + 1):
        source = position + column - context
        inside = (source >= low) & (source < high)
        columns[:, column] = np.where(inside, ids[np.where(inside, source, 0)], outside)
    return columns


def window_keys(windows: Ints) -> NDArray[np.uint64]:
    """Return uint64 [T], equal for equal windows; different ones collide once in 2^64 pairs: a training window less."""
    key = np.zeros(len(windows), np.uint64)
    for column in windows.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


@dataclass(frozen=True, eq=False)
class Blocks:
    """The text cut into blocks of equal size, file by file.

    first, last: int64 [T], the blocks of the first and last token of each token's window. num_blocks: how many there
    are.
    """

    first: Ints
    last: Ints
    num_blocks: int

    @classmethod
    def cut(cls, starts: Ints, size: int, context: int) -> Blocks:
        """Cut files that begin at starts [files + 1] into blocks of `size` tokens, the last of each file shorter."""
        if size < 2 * context + 1:
            raise ValueError(f"block must be at least 2 * context + 1 = {2 * context + 1}, got {size}")
        lengths = np.diff(starts)
        file = np.repeat(np.arange(len(lengths)), lengths)
        position = np.arange(starts[-1])
        before = np.concatenate([[0], np.cumsum(-(-lengths // size))])
        block = before[file] + (position - starts[file]) // size
        first = block[np.maximum(position - context, starts[file])]
        last = block[np.minimum(position + context, starts[file + 1] - 1)]
        return cls(first, last, int(before[-1]))

    @property
    def whole(self) -> Bools:
        """Which windows lie in one block: bool [T]."""
        return self.first == self.last


def homes(target: Ints, num_classes: int, keys: NDArray[np.uint64], blocks: Blocks) -> Ints:
    """Return the positions, ascending, where each distinct window of a class first lies within one block."""
    candidates = np.flatnonzero(blocks.whole & (target < num_classes))
    return np.sort(candidates[np.unique(keys[candidates], return_index=True)[1]])


def hold_out(target: Ints, block: Ints, num_classes: int, num_blocks: int, need: int) -> tuple[Bools, Ints]:
    """Choose blocks, greedily, that hold `need` distinct windows of every class and at most half of any class's.

    target, block [H]: class and block of each distinct window. The classes take their turn from the rarest on, because
    the blocks of the rare ones hold enough of the common ones; a class tries its blocks in one fixed random order.
    Returns bool [num_blocks] and the classes for which it could not be done.
    """
    pairs, counts = np.unique(block.astype(np.int64) * num_classes + target, return_counts=True)
    pair_block, pair_class = pairs // num_classes, pairs % num_classes
    block_start = np.searchsorted(pair_block, np.arange(num_blocks + 1))
    turn = np.random.default_rng(0).permutation(num_blocks)
    by_class = np.lexsort((turn[pair_block], pair_class))
    class_start = np.searchsorted(pair_class[by_class], np.arange(num_classes + 1))
    total = np.bincount(target, minlength=num_classes)
    held, have = np.zeros(num_blocks, bool), np.zeros(num_classes, np.int64)
    for rarest in np.argsort(total, kind="stable"):
        for candidate in pair_block[by_class[class_start[rarest] : class_start[rarest + 1]]]:
            if have[rarest] >= need:
                break
            inside = slice(block_start[candidate], block_start[candidate + 1])
            more = have[pair_class[inside]] + counts[inside]
            if not held[candidate] and (more <= total[pair_class[inside]] // 2).all():
                have[pair_class[inside]] = more
                held[candidate] = True
    return held, np.flatnonzero(have < need)


def draw_per_class(positions: Ints, target: Ints, count: int, seed: int) -> Ints:
    """Return `count` positions of every class, drawn without replacement, ascending; target: the positions' classes."""
    shuffled = np.random.default_rng(seed).permutation(len(positions))
    by_class = shuffled[np.argsort(target[shuffled], kind="stable")]
    ordered = target[by_class]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return np.sort(positions[by_class[rank < count]])
