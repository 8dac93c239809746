"""The data set hanzi-lt: thousands of Chinese characters, drawn from the fonts of the machine, with their own tail."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.cache import default_cache_dir, mapped
from lt_kernels.data.hanzi.characters import counts_of, frequent
from lt_kernels.data.hanzi.drawing import Glyphs
from lt_kernels.data.hanzi.fonts import covering, divide
from lt_kernels.data.lazy import LARGEST_PART
from lt_kernels.system.files import as_path

IMAGES = 437_513  # as many as the training set of iNaturalist 2018 has


@register("hanzi-lt")
def hanzi_lt(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    num_classes: int = 8142,
    images: int = IMAGES,
    test_per_class: int = 3,
    fonts: Sequence[str] | None = None,
    test_fonts: Sequence[str] | None = None,
    keep: bool = True,
) -> LongTailedData:
    """Tell Chinese characters apart: inputs uint8 [N, 1, 32, 32], target int64 [N].

    The classes are the `num_classes` most frequent characters of jieba's dictionary, as many as iNaturalist 2018 has
    species. They have from 1,000 to 2 images in the order of their frequencies (`characters.counts_of`), at most
    `images` in all. The test set has `test_per_class` of
    each, in fonts of other families than any training image: `test_fonts` begin the names of those families.
    `fonts` are folders and files to look for fonts in (without them, where the system keeps them); those with all
    characters are used. An image's font, size, place, slant, stroke and noise depend on `seed` and on its number alone.
    With `keep` the images are drawn once into a file in `cache_dir` (448 MB for all), which is then mapped into memory;
    without, each batch is drawn when it is asked for, by one core in each process. imbalance must be None.
    Errors: ValueError naming the argument, FileError naming the packages with fonts, ImportError naming the extra.
    """
    if imbalance is not None:
        raise ValueError(f"imbalance must be None for hanzi-lt, whose counts are those of a language, got {imbalance}")
    characters, frequency = frequent(num_classes)
    counts = torch.from_numpy(counts_of(frequency, images))
    folder = default_cache_dir() if cache_dir is None else as_path("cache_dir", cache_dir)
    train_fonts, held_fonts = divide(covering(characters, fonts, folder), test_fonts)
    each = torch.full_like(counts, checks.whole("test_per_class", test_per_class))
    parts = []
    for number, (some, count) in enumerate(((train_fonts, counts), (held_fonts, each))):
        target = torch.arange(num_classes).repeat_interleave(count)
        rows = Glyphs(target, characters, some, 2 * seed + number)
        parts.append((drawn(rows, folder) if keep else rows, target))
    return LongTailedData(
        name="hanzi-lt",
        train=parts[0],
        test=parts[1],
        class_counts=counts,
        num_classes=num_classes,
        input_kind="image",
        class_names=tuple(characters),
        facts={"fonts_of_training": len(train_fonts), "fonts_of_test": len(held_fonts)},
        pixel_mean=(0.16,),
        pixel_deviation=(0.27,),
    )


def drawn(rows: Glyphs, folder: Path) -> Tensor:
    """All images uint8 [N, 1, 32, 32] from a file of the folder, mapped into memory; drawn now if it is not there."""
    labels = hashlib.sha256(rows.labels.numpy().tobytes()).hexdigest()
    sizes = [Path(font.path).stat().st_size for font in rows.fonts]
    digest = hashlib.sha256(repr((labels, rows.characters, rows.fonts, sizes, rows.seed)).encode()).hexdigest()[:16]
    path = folder / f"hanzi-images-{digest}.bytes"
    return torch.from_numpy(mapped(path, rows.shape, (part.numpy().tobytes() for part in rows.split(LARGEST_PART))))
