"""Folders of pictures, one a class: what is found, held out, cut and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="pillow is not installed")

from PIL import Image

from lt_kernels.data import LongTailedData, load, validation_split
from lt_kernels.data.images import ImageList
from lt_kernels.system.files import FileError

COUNTS = {"ant": 5, "bee": 3, "cat": 1}


def draw(path: Path, colour: int, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 2 * colour, 255 - colour)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            draw(tmp_path / "train" / name / f"{number}.png", 10 * label + number)
        draw(tmp_path / "test" / name / "0.png", 100 + label)
    return tmp_path


def first_channel(data: LongTailedData, part: str) -> list[int]:
    inputs = getattr(data, part)[0]
    return torch.cat(list(inputs.split(2)))[:, 0, 0, 0].tolist()


def test_classes_are_folders_in_order(root: Path) -> None:
    (root / "train" / "bee" / "deep").mkdir()
    (root / "train" / "bee" / "2.png").rename(root / "train" / "bee" / "deep" / "2.png")
    (root / "train" / "bee" / "notes.txt").write_text("no picture")
    (root / "train" / ".hidden").mkdir()
    data = load("folder", root=root)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.class_counts.tolist() == [5, 3, 1]
    assert data.train[1].tolist() == [0] * 5 + [1] * 3 + [2]
    assert first_channel(data, "train") == [0, 1, 2, 3, 4, 10, 11, 12, 20]
    assert first_channel(data, "test") == [100, 101, 102]
    assert data.train[0].shape == (9, 3, 6, 6)  # the shorter side of the first picture
    assert data.pixel_mean == (0.485, 0.456, 0.406)


def test_sizes_and_pixels_as_asked_for(root: Path) -> None:
    options = {"resize": 10, "train_crop": 9, "crop": 8, "pixel_mean": [0.1, 0.2, 0.3], "pixel_deviation": [1, 2, 3]}
    data = load("folder", root=root, **options)
    assert (data.train[0].shape[2:], data.test[0].shape[2:]) == ((9, 9), (8, 8))
    assert (data.pixel_mean, data.pixel_deviation) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    draw(root / "train" / "ant" / "0.png", 0, (300, 200))
    assert load("folder", root=root).train[0].shape[2:] == (64, 64)


def test_in_memory_the_same_pixels(root: Path) -> None:
    lazy, whole = load("folder", root=root), load("folder", root=root, lazy=False)
    assert isinstance(lazy.train[0], ImageList)
    assert type(whole.train[0]) is torch.Tensor
    assert torch.equal(whole.train[0], lazy.train[0].index_select(0, torch.arange(9)))


@pytest.mark.parametrize("below", ["train", "."])
def test_a_share_of_each_class_is_held_out(root: Path, below: str) -> None:
    """round(0.4 n), at least one and not the last one: 2 of 5, 1 of 3, 0 of 1; drawn by the seed."""
    where = root if below == "train" else root / "train"
    drawn = [load("folder", root=where, test=0.4, seed=seed, crop=4) for seed in (0, 0, 1, 2, 3)]
    first = drawn[0]
    assert first.class_counts.tolist() == [3, 2, 1]
    assert torch.bincount(first.test[1], minlength=3).tolist() == [2, 1, 0]
    assert first.test[0].shape[2:] == (4, 4)
    assert sorted(first_channel(first, "train") + first_channel(first, "test")) == [0, 1, 2, 3, 4, 10, 11, 12, 20]
    chosen = [first_channel(one, "test") for one in drawn]
    assert chosen[0] == chosen[1]
    assert len({tuple(one) for one in chosen}) > 1


def test_a_validation_set_is_taken_from_it(root: Path) -> None:
    held = validation_split(load("folder", root=root, train_crop=5, crop=4), 1)
    assert held.class_counts.tolist() == [4, 2, 1]
    assert (held.train[0].shape, held.test[0].shape) == ((7, 3, 5, 5), (2, 3, 4, 4))


def test_val_stands_for_test(root: Path) -> None:
    (root / "test").rename(root / "val")
    assert first_channel(load("folder", root=root), "test") == [100, 101, 102]
    (root / "val").rename(root / "third")
    assert first_channel(load("folder", root=root, test="third"), "test") == [100, 101, 102]


def test_an_empty_folder_is_a_class_without_test_pictures(root: Path) -> None:
    (root / "test" / "cat" / "0.png").unlink()
    assert load("folder", root=root).test[1].tolist() == [0, 1]


WRONG = [
    ({"root": None}, "root must name a folder of pictures"),
    ({"root": "/nowhere"}, r"'/nowhere/train' of pictures is missing.*data_options.test"),
    ({"imbalance": 10}, "imbalance must be None for folder"),
    ({"test": "none"}, "none' of pictures is missing"),
    ({"test": 0.0}, "test must be finite and > 0"),
    ({"test": 1.5}, "test must be finite"),
    ({"resize": 4, "crop": 5}, "crop must be at most 4, got 5"),
    ({"pixel_mean": [0.5]}, "pixel_mean must have a number for each of 3 channels"),
    ({"pixel_deviation": [1, 0, 1]}, "pixel_deviation must be above 0"),
    ({"lazy": "no"}, "lazy must be True or False"),
    ({"tset": 0.2}, r"options of folder must be among .*root, .*got 'tset' \(did you mean 'test'\?\)$"),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_wrong_options_are_named(root: Path, options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load("folder", **{"root": root, **options})


def test_folders_that_do_not_fit_are_named(root: Path) -> None:
    (root / "test" / "dog").mkdir()
    with pytest.raises(FileError, match=r"train' must have the classes of .*test', got no folder for 'dog'$"):
        load("folder", root=root)
    (root / "test" / "dog").rmdir()
    (root / "test" / "cat" / "0.png").unlink()
    (root / "test" / "cat").rmdir()
    with pytest.raises(FileError, match=r"test' must have .* got no folder for 'cat'; an empty folder stands for"):
        load("folder", root=root)
    with pytest.raises(FileError, match="must have a folder for each class, got none"):
        load("folder", root=root, train="train/ant")
    (root / "train" / "cat" / "0.png").unlink()
    with pytest.raises(FileError, match=r"train/cat' must have a picture .*, got none"):
        load("folder", root=root)


def test_a_folder_with_a_single_class_is_refused(root: Path) -> None:
    for part in ("train", "test"):
        for name in ("bee", "cat"):
            shutil.rmtree(root / part / name)
    with pytest.raises(ValueError, match=r"num_classes must be at least 2, of which .*, got 1, 'ant'$"):
        load("folder", root=root)


def test_a_picture_that_cannot_be_read_is_named(root: Path) -> None:
    (root / "train" / "bee" / "1.png").write_bytes(b"no picture")
    data = load("folder", root=root)
    with pytest.raises(FileError, match=r"train/bee/1.png' cannot be read as a picture"):
        data.train[0].index_select(0, torch.arange(9))
