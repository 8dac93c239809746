"""The data set stdlib-words: which word of Python's own standard library stands between these neighbours?"""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.cache import Arrays, default_cache_dir, kept
from lt_kernels.data.split import Blocks, Ints, draw_per_class, hold_out, homes, text_windows, window_keys
from lt_kernels.system.files import as_path

WORD = re.compile(r"[a-z]+")


def source_files() -> list[Path]:
    """Return the .py files of the running Python's standard library, without installed packages, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    packages = {"site-packages", "dist-packages"}
    return sorted(path for path in library.rglob("*.py") if packages.isdisjoint(path.parts) and path.is_file())


def read_corpus(files: Sequence[Path], max_tokens: int | None) -> tuple[Ints, Ints, list[str]]:
    """Return ids int32 [T], where each file starts int64 [files + 1], and the words that the ids stand for.

    A word is a run of ASCII letters, lower-cased; everything else separates words. Reading ends after the first
    `max_tokens` words.
    """
    vocabulary: dict[str, int] = {}
    parts, starts = [], [0]
    for path in files:
        if max_tokens is not None and starts[-1] >= max_tokens:
            break
        tokens = WORD.findall(path.read_text("utf-8", errors="ignore").lower())
        if max_tokens is not None:
            tokens = tokens[: max_tokens - starts[-1]]
        parts.append(np.array([vocabulary.setdefault(word, len(vocabulary)) for word in tokens], np.int32))
        starts.append(starts[-1] + len(tokens))
    return np.concatenate(parts or [np.zeros(0, np.int32)]), np.array(starts), list(vocabulary)


def choose_words(counts: Ints, words: Sequence[str], passed: set[int], num_classes: int, least: int) -> Ints:
    """Return the ids of the `num_classes` most frequent words (ties: alphabetically) that were not passed over."""
    fit = [i for i in np.flatnonzero(counts >= least).tolist() if i not in passed]
    if len(fit) < num_classes:
        raise ValueError(
            f"num_classes must be at most {len(fit)} for this Python's sources (some installations leave out the "
            f"library's test folders) with these max_tokens, test_per_class and block, got {num_classes}"
        )
    return np.array(sorted(fit, key=lambda i: (-counts[i], words[i]))[:num_classes])


def prepare(
    files: Sequence[Path], num_classes: int, need: int, context: int, block: int, max_tokens: int | None
) -> Arrays:
    """Choose the classes and the blocks of text that are held out for the test; the same on every run."""
    ids, starts, words = read_corpus(files, max_tokens)
    counts = np.bincount(ids, minlength=len(words))
    blocks = Blocks.cut(starts, block, context)
    passed: set[int] = set()
    while True:
        chosen = choose_words(counts, words, passed, num_classes, 2 * need)
        class_of = np.full(len(words), num_classes, np.uint16)
        class_of[chosen] = np.arange(num_classes, dtype=np.uint16)
        target = class_of[ids]
        keys = window_keys(text_windows(target, starts, context, num_classes + 1))
        home = homes(target, num_classes, keys, blocks)
        held, short = hold_out(target[home], blocks.first[home], num_classes, blocks.num_blocks, need)
        if not len(short):
            names = np.array([words[i] for i in chosen])
            return {"target": target, "starts": starts, "held": held, "words": names, "passed": np.array(len(passed))}
        passed.update(chosen[short].tolist())


def cache_path(cache_dir: str | Path | None, files: Sequence[Path], settings: Sequence[int | None]) -> Path:
    """Return the cache file of these settings for this Python: its version, and a hash of its files and their sizes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    listing = [(path.relative_to(library).as_posix(), path.stat().st_size) for path in files]
    digest = hashlib.sha256(repr((listing, tuple(settings))).encode()).hexdigest()[:16]
    folder = default_cache_dir() if cache_dir is None else as_path("cache_dir", cache_dir)
    return (
        folder / f"stdlib-words-{platform.python_implementation().lower()}-{platform.python_version()}-{digest}.arrays"
    )


def separate(
    made: Arrays, windows: Ints, need: int, context: int, block: int, seed: int
) -> tuple[Ints, Ints, dict[str, float]]:
    """Return the training positions, the test positions, and what was measured on the way."""
    target, held, num_classes = made["target"], made["held"], len(made["words"])
    blocks = Blocks.cut(made["starts"], block, context)
    keys = window_keys(windows)
    home = homes(target, num_classes, keys, blocks)
    home = home[held[blocks.first[home]]]
    test = draw_per_class(home, target[home], need, seed)
    # a window is shorter than a block: its first and last token tell all the blocks that it touches
    apart = np.flatnonzero(~held[blocks.first] & ~held[blocks.last] & (target < num_classes))
    repeated = np.isin(keys[apart], keys[test])
    facts: dict[str, float] = {
        "tokens": len(target),
        "files": len(made["starts"]) - 1,
        "words_passed_over": int(made["passed"]),
        "blocks": blocks.num_blocks,
        "test_blocks": int(held.sum()),
        "train_windows_equal_to_test_removed": int(repeated.sum()),
        "test_windows_with_such_copies": int(np.isin(keys[test], keys[apart[repeated]]).sum()),
    }
    return apart[~repeated], test, facts


def assemble(made: Arrays, need: int, context: int, block: int, seed: int) -> LongTailedData:
    """Cut the windows out of the text and put them into a LongTailedData."""
    target, num_classes = made["target"], len(made["words"])
    windows = text_windows(target, made["starts"], context, num_classes + 1)
    train, test, facts = separate(made, windows, need, context, block, seed)
    frequency = np.bincount(target, minlength=num_classes)[:num_classes]
    around = np.delete(np.arange(2 * context + 1), context)

    def part(at: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(windows[at][:, around].astype(np.int32)), torch.from_numpy(target[at].astype(np.int64))

    pair = part(train)
    return LongTailedData(
        name="stdlib-words",
        train=pair,
        test=part(test),
        class_counts=torch.bincount(pair[1], minlength=num_classes),
        num_classes=num_classes,
        input_kind="words",
        class_names=tuple(made["words"].tolist()),
        num_words=num_classes + 2,
        facts={**facts, "most_frequent": int(frequency.max()), "least_frequent": int(frequency.min())},
    )


@register("stdlib-words")
def stdlib_words(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    num_classes: int = 8142,
    test_per_class: int = 5,
    context: int = 3,
    max_tokens: int | None = None,
    block: int = 64,
) -> LongTailedData:
    """Predict a word of the running Python's standard library from the `context` words on either side.

    inputs int32 [N, 2 * context], target int64 [N]. The classes are the most frequent words, class 0 the most frequent
    of all; id C stands for any other word, id C + 1 for a place outside the file. The tail is the text's own, so
    `imbalance` takes None alone.

    The split: files are cut into blocks of `block` tokens. Blocks are held out, greedily from the rarest class on,
    until they hold `test_per_class` distinct windows of every class and never more than half of any class's distinct
    windows; a word for which that cannot be done is passed over, and the next most frequent takes its place. The test
    set is `test_per_class` windows of each class, drawn with `seed` from those that lie within one held-out block. The
    training set is every window that touches no held-out block and equals (neighbours and word) no test window. So no
    token and no window is in both; counts are those after the split. The classes and the held-out text are the same for
    every seed.

    The first call reads the sources (some seconds); what it found is kept in `cache_dir`, with a checksum: a damaged
    file is made anew. Errors: TypeError or ValueError naming the argument.
    """
    if imbalance is not None:
        raise ValueError(f"imbalance must be None for stdlib-words, whose counts are the text's own, got {imbalance}")
    checks.whole("num_classes", num_classes, 2, np.iinfo(np.uint16).max - 2)
    for name, value in (("test_per_class", test_per_class), ("context", context), ("block", block)):
        checks.whole(name, value)
    if max_tokens is not None:
        checks.whole("max_tokens", max_tokens)
    files = source_files()
    settings = (num_classes, test_per_class, context, block, max_tokens)
    made = kept(cache_path(cache_dir, files, settings), lambda: prepare(files, *settings))
    return assemble(made, test_per_class, context, block, seed)
