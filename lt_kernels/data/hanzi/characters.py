"""The classes of hanzi-lt: the most frequent Chinese characters, and how many images each has."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np

from lt_kernels.core import checks

FIRST, LAST = "\u4e00", "\u9fff"  # the block of the unified ideographs
LARGEST, SMALLEST = 1000, 2  # images of a class
BENDS = (0.05, 20.0)  # exponents of the curve of counts


def dictionary() -> Path:
    """The file of jieba's dictionary, a word, its frequency and its kind on each line.

    Errors: ImportError naming the extra where jieba is missing.
    """
    found = importlib.util.find_spec("jieba")
    for folder in found.submodule_search_locations or () if found else ():
        if (Path(folder) / "dict.txt").is_file():
            return Path(folder) / "dict.txt"
    raise ImportError("hanzi-lt needs the dictionary of jieba: pip install 'lt-kernels[hanzi]'")


def frequent(num_classes: int, file: Path | None = None) -> tuple[str, np.ndarray]:
    """The `num_classes` most frequent characters, and their frequencies float64 [C], the highest first.

    A character's frequency is the sum of those of the words that it is in, once for each time; of two that are equally
    frequent the one with the lower code comes first. Errors: ValueError if the dictionary has fewer.
    """
    count: Counter[str] = Counter()
    with (dictionary() if file is None else file).open(encoding="utf-8") as lines:
        for line in lines:
            word, frequency, *_ = line.split(" ")
            for character in word:
                if FIRST <= character <= LAST:
                    count[character] += int(frequency)
    if not 2 <= checks.whole("num_classes", num_classes) <= len(count):
        raise ValueError(f"num_classes must be in 2..{len(count)}, the characters of the dictionary, got {num_classes}")
    first = sorted(count.items(), key=lambda item: (-item[1], item[0]))[:num_classes]
    return "".join(character for character, _ in first), np.array([number for _, number in first], np.float64)


def counts_of(frequency: np.ndarray, images: int) -> np.ndarray:
    """Images of each class, int64 [C], from 1,000 to 2 in the order of the frequencies f_c: at most `images` in all.

    n_c = floor(1000 * 500^(-t_c^q)), t_c = log(f_0 / f_c) / log(f_0 / f_{C-1}). With q = 1 a power of the frequency;
    here q is such that there are as many images as may be. Errors: ValueError where no q gives so few or so many.
    """
    share = np.log(frequency[0] / frequency) / np.log(frequency[0] / frequency[-1])

    def bent(power: float) -> np.ndarray:
        values = LARGEST * (LARGEST / SMALLEST) ** -(share**power)
        return np.maximum(SMALLEST, np.floor(values + 1e-9)).astype(np.int64)  # 1e-9: the last one is a whole number

    low, high = BENDS
    if not bent(low).sum() <= checks.whole("images", images) <= bent(high).sum():
        span = f"{int(bent(low).sum()):,}..{int(bent(high).sum()):,}"
        raise ValueError(f"images must be in {span} for {len(frequency):,} classes, got {images:,}")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bent(middle).sum() <= images else (low, middle)
    return bent(low)
