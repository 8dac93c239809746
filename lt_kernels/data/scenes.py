"""The data set digit-scenes: which digit does each pixel belong to, in scenes of scanned digits with a long tail?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import IGNORED, LongTailedData, register
from lt_kernels.data.digits import scans
from lt_kernels.data.profiles import choose, exponential_counts
from lt_kernels.data.samplers import epoch_generator

LEVELS = 16  # the scans' grey levels above 0
SCAN = 8  # height and width of a scan
MOST = 4  # among any three scans and a canvas of 3 * SCAN - 1, one corner stays free for a fourth


def place(count: int, size: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Return the upper left corners of `count` scans on a canvas of size x size, drawn one after the other, uniformly
    among the places where no scan covers another.
    """
    free = torch.ones(size - SCAN + 1, size - SCAN + 1, dtype=torch.bool)
    corners = []
    for _ in range(count):
        places = free.nonzero()
        row, column = places[int(torch.randint(len(places), (), generator=generator))].tolist()
        free[max(0, row - SCAN + 1) : row + SCAN, max(0, column - SCAN + 1) : column + SCAN] = False
        corners.append((row, column))
    return corners


def label(images: Tensor, digit: Tensor, stroke: int) -> Tensor:
    """Return the class of each pixel of scans [M, 8, 8] of the digits [M]: int64 [M, 8, 8].

    0 where there is no ink, 1 + digit from grey level `stroke` of 16 on, IGNORED in between: the faint border of a
    stroke.
    """
    level = (images * LEVELS).round()
    inked = torch.where(level >= stroke, 1 + digit[:, None, None], IGNORED)
    return torch.where(level == 0, 0, inked)


def compose(
    images: Tensor, target: Tensor, per_scene: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Put scans [M, 8, 8] with their pixels' classes [M, 8, 8] on canvases, `per_scene` on each as they come.

    Returns inputs [S, 1, size, size] and target int64 [S, size, size], S = ceil(M / per_scene); the last may have
    fewer scans.
    """
    scenes = -(-len(images) // per_scene)
    inputs = torch.zeros(scenes, 1, size, size)
    labels = torch.zeros(scenes, size, size, dtype=torch.int64)
    for scene in range(scenes):
        members = range(scene * per_scene, min((scene + 1) * per_scene, len(images)))
        for member, (row, column) in zip(members, place(len(members), size, generator)):
            inside = slice(row, row + SCAN), slice(column, column + SCAN)
            inputs[scene, 0][inside] = images[member]
            labels[scene][inside] = target[member]
    return inputs, labels


def repeat(rows: Tensor, target: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return counts[c] of the `rows` of each class c, each as often as the others or once more, in random order.

    rows: int64 [R], indices into target [N].
    """
    drawn = []
    for digit, count in enumerate(counts):
        of_class = rows[target[rows] == digit]
        rounds = -(-count // len(of_class))
        order = [of_class[torch.randperm(len(of_class), generator=generator)] for _ in range(rounds)]
        drawn.append(torch.cat(order)[:count])
    together = torch.cat(drawn)
    return together[torch.randperm(len(together), generator=generator)]


def _check(test_per_class: int, rarest: int, per_scene: int, size: int, stroke: int) -> None:
    if not 1 <= checks.whole("test_per_class", test_per_class) < rarest:
        raise ValueError(f"test_per_class must be in 1..{rarest - 1}, got {test_per_class}")
    if not 1 <= checks.whole("per_scene", per_scene) <= MOST:
        raise ValueError(f"per_scene must be in 1..{MOST}, so that the scans have room, got {per_scene}")
    if checks.whole("size", size) < 3 * SCAN - 1 or size % 4:
        raise ValueError(f"size must be a multiple of 4 and at least {3 * SCAN}, got {size}")
    if not 2 <= checks.whole("stroke", stroke) <= LEVELS:
        raise ValueError(f"stroke must be in 2..{LEVELS}, the grey levels of the scans, got {stroke}")


@register("digit-scenes")
def digit_scenes(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    most: int = 500,
    test_per_class: int = 50,
    per_scene: int = 4,
    size: int = 32,
    stroke: int = 6,
) -> LongTailedData:
    """Tell of each pixel of a scene which digit it belongs to: inputs float32 [N, 1, size, size], target int64 [N,
    size, size].

    A scene holds `per_scene` of scikit-learn's scans of handwritten digits (Alpaydin and Kaynak, 1998), none covering
    another, at random places on an empty canvas. Class 0 is the background, class 1 + d the strokes of digit d: pixels
    from grey level `stroke` of 16 on; fainter ones are ignored. `test_per_class` scans of each digit are placed once
    each, in the test scenes alone. The others make the training scenes: digit d is placed int(most * (1 /
    imbalance)^(d / 9)) times, each of its scans as often as the others or once more: with the defaults (imbalance 100)
    500, 299, 179, 107, 64, 38, 23, 13, 8, 5 times in 309 scenes. class_counts counts pixels, group_counts the scans
    placed (for the background: the scenes). The images are shifted and scaled to mean 0 and standard deviation 1 over
    all training pixels. `cache_dir` is not used. Errors: TypeError or ValueError naming the argument; ImportError
    without scikit-learn.
    """
    images, digit = scans("digit-scenes")
    available = torch.bincount(digit)
    _check(test_per_class, int(available.min()), per_scene, size, stroke)
    placed = exponential_counts(checks.whole("most", most), len(available), 100 if imbalance is None else imbalance)
    held = choose(digit, [test_per_class] * len(available), seed)
    rest = torch.ones(len(digit), dtype=torch.bool).index_fill(0, held, False).nonzero().flatten()
    generator = epoch_generator(seed, 1)  # 0 drew the test scans
    pixels = label(images[:, 0], digit, stroke)
    train, test = (
        compose(images[rows, 0], pixels[rows], per_scene, size, generator)
        for rows in (
            repeat(rest, digit, placed, generator),
            repeat(held, digit, [test_per_class] * len(available), generator),
        )
    )
    return _data(train, test, placed)


def _data(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], placed: Sequence[int]) -> LongTailedData:
    """Scale the images and count the classes."""
    mean, deviation = train[0].mean(), train[0].std()
    counted = torch.bincount(train[1][train[1] != IGNORED], minlength=len(placed) + 1)
    return LongTailedData(
        name="digit-scenes",
        train=((train[0] - mean) / deviation, train[1]),
        test=((test[0] - mean) / deviation, test[1]),
        class_counts=counted,
        num_classes=len(placed) + 1,
        input_kind="scene",
        class_names=("background", *(str(digit) for digit in range(len(placed)))),
        facts={"pixel_mean": float(mean), "pixel_deviation": float(deviation)},
        group_counts=torch.tensor([len(train[0]), *placed]),
        units=("pixels", "scans"),
    )
