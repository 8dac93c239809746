"""Cityscapes' folders: which files and classes, what is read when, counts that are kept, and errors that name it."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from streets import IDS, write_streets

from lt_kernels.data import ResumableLoader, cityscapes, load
from lt_kernels.data.base import IGNORED
from lt_kernels.system.files import FileError

pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")

NAMES = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
         "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]  # fmt: skip
LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_streets(tmp_path / "streets")


def read(root: Path, **options: object):
    return load("cityscapes", root=root, cache_dir=root.parent / "cache", threads=2, **options)


def stored(root: Path, kind: str, part: str) -> list[np.ndarray]:
    """The arrays of a part's files, by city and name."""
    files = sorted((root / kind / part).rglob("*.png"))
    return [np.array(pillow.open(file)) for file in files]


def test_pictures_and_classes_are_those_of_the_files(root: Path) -> None:
    data = read(root)
    assert (data.num_classes, list(data.class_names)) == (19, NAMES)
    assert data.train[0].shape == (3, 3, 32, 64)
    assert data.train[1].shape == (3, 32, 64)
    assert len(data.test[0]) == 2
    for part, (inputs, target) in (("train", data.train), ("val", data.test)):
        pictures = np.stack(stored(root, "leftImg8bit", part)).transpose(0, 3, 1, 2)
        assert torch.equal(torch.cat(list(inputs.split(2))), torch.from_numpy(pictures.copy()))
        ids = np.stack(stored(root, "gtFine", part))
        expected = np.full(ids.shape, IGNORED)
        for index, label in enumerate(LABEL_IDS):
            expected[ids == label] = index
        found = torch.cat(list(target.split(1)))
        assert found.dtype == torch.int64
        assert torch.equal(found, torch.from_numpy(expected))
        assert torch.equal(target[-1], found[-1])
    assert (expected == IGNORED).any()


def test_counts_are_of_training_pixels_and_scenes(root: Path) -> None:
    first = sorted((root / "gtFine" / "train").rglob("*.png"))[0]
    ids = np.array(pillow.open(first))
    ids[ids == 33] = 7  # no bicycle in this scene
    pillow.fromarray(ids).save(first)
    data = read(root)
    found = np.stack(stored(root, "gtFine", "train"))
    assert data.class_counts.tolist() == [int((found == label).sum()) for label in LABEL_IDS]
    assert data.group_counts.tolist() == [3] * 18 + [2]
    assert data.units == ("pixels", "scenes")
    assert len(IDS) == 21


def test_counts_are_kept_until_a_label_map_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    count = cityscapes._count
    monkeypatch.setattr(cityscapes, "_count", lambda maps: calls.append(1) or count(maps))
    first = read(root)
    assert torch.equal(read(root).class_counts, first.class_counts)
    assert len(calls) == 1
    file = sorted((root / "gtFine" / "train").rglob("*.png"))[0]
    ids = np.array(pillow.open(file))
    ids[:] = 7
    pillow.fromarray(ids).save(file)
    other = read(root)
    assert len(calls) == 2
    assert other.class_counts[0] > first.class_counts[0]


def test_a_loader_hands_out_pictures_with_their_own_classes(root: Path) -> None:
    data = read(root)
    loader = ResumableLoader(data.train, 2, seed=4)
    rows = torch.cat([batch[0] for batch in loader]).sum((1, 2, 3)).tolist()
    loader.set_epoch(0)
    for inputs, target in loader:
        for one, classes in zip(inputs, target):
            place = [int(data.train[0][row].sum()) for row in range(3)].index(int(one.sum()))
            assert torch.equal(classes, data.train[1][place])
    assert len(rows) == 3


def test_lists_can_be_sent_to_another_process(root: Path) -> None:
    data = read(root)
    list(data.train[1].split(2))
    again = pickle.loads(pickle.dumps(data.train[1]))
    assert torch.equal(again[0], data.train[1][0])


def no_root(root: Path) -> dict:
    return {"root": None}


def no_labels(root: Path) -> dict:
    shutil.rmtree(root / "gtFine" / "val")
    return {}


def no_pictures(root: Path) -> dict:
    shutil.rmtree(root / "leftImg8bit" / "train" / "city0")
    shutil.rmtree(root / "leftImg8bit" / "train" / "city1")
    return {}


def no_map(root: Path) -> dict:
    next((root / "gtFine" / "train").rglob("*.png")).unlink()
    return {}


def no_class(root: Path) -> dict:
    for file in (root / "gtFine" / "train").rglob("*.png"):
        ids = np.array(pillow.open(file))
        ids[ids == 27] = 0
        pillow.fromarray(ids).save(file)
    return {}


def coloured(root: Path) -> dict:
    for file in (root / "gtFine" / "train").rglob("*.png"):
        pillow.open(file).convert("RGB").save(file)
    return {}


def smaller(root: Path) -> dict:
    file = sorted((root / "gtFine" / "train").rglob("*.png"))[1]
    pillow.open(file).crop((0, 0, 60, 32)).save(file)
    return {}


LAYOUT = r"leftImg8bit/PART/CITY/NAME_leftImg8bit\.png and gtFine/PART/CITY/NAME_gtFine_labelIds\.png"


@pytest.mark.parametrize(("change", "message"), [
    (no_root, rf"root must name the folder of Cityscapes with {LAYOUT}.*got None"),
    (no_labels, rf"root must hold Cityscapes as {LAYOUT}.*missing: .*gtFine.val\. Nothing is downloaded"),
    (no_pictures, r"root must hold Cityscapes as .*no picture in .*leftImg8bit.train"),
    (no_map, r"the label map '.*_gtFine_labelIds\.png' of the image '.*_leftImg8bit\.png' is missing"),
    (no_class, r"root must hold training pixels of each of 19 classes, got none of 'truck'"),
    (coloured, r"_gtFine_labelIds\.png' cannot be read.*label ids must be grey of 8 bits, mode L, got mode RGB"),
    (smaller, r"_gtFine_labelIds\.png' cannot be read.*60 x 32 pixels, where the others have 64 x 32"),
    (lambda root: {"imbalance": 10}, r"imbalance must be None for cityscapes"),
])  # fmt: skip
def test_what_does_not_fit_is_named(root: Path, change, message: str) -> None:
    options = change(root)
    with pytest.raises(ValueError, match=message):
        load("cityscapes", **{"root": root, "cache_dir": root.parent / "cache", "threads": 1, **options})


def test_a_damaged_picture_is_named_when_it_is_read(root: Path) -> None:
    data = read(root)
    file = data.test[0].files[1]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FileError, match=re.escape(str(file))):
        list(data.test[0].split(1))
