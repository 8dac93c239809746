"""Data sets of the library datasets, on disk: columns by their features or by name, splits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets", reason="the extra [integrations] is not installed")
pytest.importorskip("PIL", reason="pillow is not installed")

import datasets
from PIL import Image

from lt_kernels.data import load, validation_split

LABELS = [0, 0, 1, 0, 1, 2]


def split(labels: list[Any], start: int, kind: Any) -> Any:
    rows = {
        "picture": [Image.new("RGB", (6, 5), (start + row, 0, 0)) for row in range(len(labels))],
        "kind": labels,
        "note": ["x"] * len(labels),
    }
    features = {"picture": datasets.Image(), "kind": kind, "note": datasets.Value("string")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def path(tmp_path: Path) -> str:
    kind = datasets.ClassLabel(names=["a", "b", "c"])
    both = datasets.DatasetDict({"train": split(LABELS, 0, kind), "test": split([2, 0], 100, kind)})
    both.save_to_disk(str(tmp_path / "stored"))
    return str(tmp_path / "stored")


def test_splits_that_number_their_classes_otherwise_agree_by_name(tmp_path: Path) -> None:
    own, other = (datasets.ClassLabel(names=names) for names in (["a", "b", "c"], ["c", "a", "b"]))
    both = datasets.DatasetDict({"train": split(LABELS, 0, own), "test": split([0, 1, 2], 100, other)})
    both.save_to_disk(str(tmp_path / "stored"))
    data = load("hf", path=str(tmp_path / "stored"))
    assert [data.class_names[label] for label in data.test[1]] == ["c", "a", "b"]


def test_numbers_of_a_split_that_names_no_classes_are_indices(tmp_path: Path) -> None:
    own, plain = datasets.ClassLabel(names=["a", "b", "c"]), datasets.Value("int64")
    both = datasets.DatasetDict({"train": split(LABELS, 0, own), "test": split([2, 0, 1], 100, plain)})
    both.save_to_disk(str(tmp_path / "stored"))
    assert load("hf", path=str(tmp_path / "stored")).test[1].tolist() == [2, 0, 1]


def test_columns_are_found_by_their_features(path: str) -> None:
    data = load("hf", path=path, crop=4)
    assert data.class_names == ("a", "b", "c")
    assert data.train[1].tolist() == LABELS
    assert data.train[0].shape == (6, 3, 5, 5)
    assert data.train[0].index_select(0, torch.tensor([3]))[0, :, 0, 0].tolist() == [3, 0, 0]
    assert (data.test[1].tolist(), data.test[0].shape) == ([2, 0], (2, 3, 4, 4))
    whole = load("hf", path=path, lazy=False)
    assert torch.equal(whole.train[0], data.train[0].index_select(0, torch.arange(6)))
    held = validation_split(data, 1)
    assert (held.class_counts.tolist(), held.test[0].shape) == ([2, 1, 1], (2, 3, 4, 4))


def test_a_share_is_held_out(path: str) -> None:
    data = load("hf", path=path, test=0.5)
    assert data.class_counts.tolist() == [1, 1, 1]
    assert torch.bincount(data.test[1]).tolist() == [2, 1]


def test_labels_of_text_are_classes_in_order(tmp_path: Path) -> None:
    split(["dog", "cat", "dog", "ant"], 0, datasets.Value("string")).save_to_disk(str(tmp_path / "one"))
    data = load("hf", path=str(tmp_path / "one"), label="kind", test=0.5)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.class_counts.tolist() == [1, 1, 1]


WRONG = [
    ({"path": None}, "path must name a folder or a data set"),
    ({"path": "/nowhere/at/all"}, "path must name a data set of the library datasets, got '/nowhere/at/all'"),
    ({"train": "first"}, "train must be one of the splits train, test, got 'first'"),
    ({"test": "val"}, "test must be one of the splits train, test, got 'val'"),
    ({"image": "none"}, "image must be one of the columns picture, kind, note, got 'none'"),
    ({"imbalance": 2}, "imbalance must be None for hf"),
    ({"crop": 9}, "crop must be at most 5, got 9"),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_wrong_options_are_named(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load("hf", **{"path": path, **options})


def test_a_column_must_be_named_where_none_fits(tmp_path: Path) -> None:
    split([0, 1, 0], 0, datasets.Value("int64")).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"label must name a column, because 0 of them are of ClassLabel: picture \(I"):
        load("hf", path=str(tmp_path / "one"), test=0.5)
