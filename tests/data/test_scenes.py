"""Scenes of scanned digits: real scans at their places, classes of pixels, and counts by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is in the [train] extra")

from sklearn.datasets import load_digits

from lt_kernels.data import LongTailedData, load
from lt_kernels.data.base import IGNORED
from lt_kernels.data.scenes import label, place, repeat

PLACED = [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]


@pytest.fixture(scope="module")
def scenes() -> LongTailedData:
    return load("digit-scenes")


def grey(data: LongTailedData, images: torch.Tensor) -> torch.Tensor:
    """The grey levels 0..16 [N, H, W] before the scaling."""
    return ((images[:, 0] * data.facts["pixel_deviation"] + data.facts["pixel_mean"]) * 16).round().long()


def test_shapes_counts_and_names(scenes: LongTailedData) -> None:
    assert scenes.group_counts.tolist() == [309, *PLACED]
    assert scenes.train[0].shape == (309, 1, 32, 32)
    assert scenes.train[1].shape == (309, 32, 32)
    assert scenes.test[1].shape == (125, 32, 32)
    assert scenes.class_names == ("background", *map(str, range(10)))
    assert scenes.units == ("pixels", "scans")
    assert [int((scenes.train[1] == y).sum()) for y in range(11)] == scenes.class_counts.tolist()
    assert len(scenes.labels("train")) == scenes.class_counts.sum() < scenes.train[1].numel()
    assert scenes.class_counts[1:].tolist() == sorted(scenes.class_counts[1:].tolist(), reverse=True)
    assert abs(float(scenes.train[0].mean())) < 1e-5
    assert abs(float(scenes.train[0].std()) - 1) < 1e-5


def test_ink_decides_the_class_of_a_pixel(scenes: LongTailedData) -> None:
    for images, target in (scenes.train, scenes.test):
        level = grey(scenes, images)
        assert torch.equal(target == 0, level == 0)
        assert torch.equal(target == IGNORED, (level > 0) & (level < 6))
        assert torch.equal(target > 0, level >= 6)


def found_scans(data: LongTailedData, part: tuple[torch.Tensor, torch.Tensor]) -> Counter:
    """How often each known scan stands somewhere in the scenes of a part, its strokes being of its digit alone.

    A scan is looked for at every place where the number of its inked pixels is right.
    """
    bundle = load_digits()
    known = {scan.astype(int).tobytes(): int(y) for scan, y in zip(bundle.images, bundle.target)}
    level = grey(data, part[0])
    windows = level.unfold(1, 8, 1).unfold(2, 8, 1).reshape(-1, 64)
    labels = part[1].unfold(1, 8, 1).unfold(2, 8, 1).reshape(-1, 64)
    rows = (windows >= 6).sum(1).nonzero().flatten()
    found: Counter = Counter()
    for window, classes in zip(windows[rows].numpy(), labels[rows].numpy()):
        digit = known.get(window.tobytes())
        if digit is not None and set(classes[window >= 6].tolist()) == {1 + digit}:
            found[window.tobytes()] += 1
    return found


def test_every_scene_is_made_of_real_scans_and_the_parts_share_none() -> None:
    data = load("digit-scenes", imbalance=4, most=40, test_per_class=6, per_scene=3, size=24, seed=5)
    train, test = found_scans(data, data.train), found_scans(data, data.test)
    assert sum(train.values()) == int(data.group_counts[1:].sum())
    assert sum(test.values()) == 60
    assert max(test.values()) == 1
    assert max(train.values()) == 1  # fewer places than scans: none is used twice
    assert not set(train) & set(test)


def test_scans_are_used_evenly() -> None:
    target = torch.arange(3).repeat_interleave(4)
    rows = torch.tensor([0, 1, 2, 4, 5, 8])
    used = Counter(repeat(rows, target, [7, 2, 3], torch.Generator().manual_seed(0)).tolist())
    assert sorted(used[row] for row in (0, 1, 2)) == [2, 2, 3]
    assert (used[4], used[5], used[8]) == (1, 1, 3)


@pytest.mark.parametrize("size", [24, 32])
def test_four_scans_always_have_room(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        corners = place(4, size, generator)
        covered = torch.zeros(size, size)
        for row, column in corners:
            covered[row : row + 8, column : column + 8] += 1
        assert covered.sum() == 4 * 64
        assert covered.max() == 1


def test_label_by_hand() -> None:
    images = torch.tensor([[0.0, 1 / 16, 5 / 16, 6 / 16, 1.0]]).expand(2, 5)[:, None]
    found = label(images, torch.tensor([0, 9]), 6)
    assert found.tolist() == [[[0, IGNORED, IGNORED, 1, 1]], [[0, IGNORED, IGNORED, 10, 10]]]


def test_a_seed_makes_the_same_scenes_again() -> None:
    first, again, other = (load("digit-scenes", most=20, imbalance=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train[0], again.train[0])
    assert torch.equal(first.test[1], again.test[1])
    assert not torch.equal(first.test[1], other.test[1])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"imbalance": 0.5}, "imbalance"),
        ({"test_per_class": 174}, "test_per_class"),
        ({"per_scene": 5}, "per_scene"),
        ({"size": 20}, "size"),
        ({"size": 30}, "size"),
        ({"stroke": 1}, "stroke"),
        ({"most": 0}, "most"),
        ({"most": 50}, "imbalance must be at most"),
    ],
)
def test_bad_options_are_named(options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        load("digit-scenes", **options)


def changed(change: Callable[[dict], None]) -> LongTailedData:
    target = torch.tensor([[[0, 1], [IGNORED, 1]]])
    fields = {"train": (torch.zeros(1, 1, 2, 2), target), "test": (torch.zeros(1, 1, 2, 2), target)}
    fields |= {"class_counts": torch.tensor([1, 2]), "class_names": ("a", "b"), "input_kind": "scene"}
    change(fields)
    return LongTailedData("x", num_classes=2, **fields)


def test_ignored_pixels_do_not_count() -> None:
    assert changed(lambda fields: None).labels("train").tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_counts": torch.tensor([2, 2])}, "number of training pixels"),
        ({"input_kind": "image"}, r"train targets must have shape \[1\]"),
        ({"test": (torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 3).long())}, r"test targets must have shape \[1, 2, 2\]"),
        ({"test": (torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2), 2))}, r"test targets must be in 0\.\.1"),
        ({"group_counts": torch.tensor([1])}, "group_counts"),
    ],
)
def test_scenes_that_contradict_themselves(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(lambda fields: fields.update(change))
