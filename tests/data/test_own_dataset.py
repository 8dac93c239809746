"""Datasets by class_path: what items may be, the two parts, lazy reading, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse", reason="the extra [train] is not installed")

from lt_kernels.data import load, validation_split

LABELS = {"init_args": {"labels": [0, 0, 0, 1, 1]}, "test": {"labels": [1, 0], "start": 100}}


def points(**changes: Any) -> Any:
    return load("dataset", **{"class_path": "own_datasets.Points", **LABELS, **changes})


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kind, first", [("tensor", [4.0, 1.0]), ("array", [[4.0, 4.0], [4.0, 4.0]])])
def test_items_are_stacked(lazy: bool, kind: str, first: list[Any]) -> None:
    data = points(init_args={"labels": [0, 0, 0, 1, 1], "kind": kind}, lazy=lazy)
    assert data.class_names == ("low", "high")
    assert data.class_counts.tolist() == [3, 2]
    assert data.train[1].tolist() == [0, 0, 0, 1, 1]
    assert data.train[0].index_select(0, torch.tensor([4])).tolist() == [first]
    assert data.train[0].dtype == torch.float32
    assert torch.cat(list(data.test[0].split(1)))[:, 0].flatten()[[0, -1]].tolist() == [100.0, 101.0]
    assert data.pixel_mean == ()
    held = validation_split(data, 1)
    assert (len(held.train[0]), held.test[0].shape[1:]) == (3, data.train[0].shape[1:])


def test_pictures_are_pixels() -> None:
    pytest.importorskip("PIL", reason="pillow is not installed")
    data = points(init_args={"labels": [0, 1], "kind": "picture"})
    assert (data.train[0].shape, data.train[0].dtype) == ((2, 1, 3, 4), torch.uint8)
    assert data.test[0][:, 0, 0, 0].tolist() == [100, 101]
    assert data.pixel_mean == data.pixel_deviation == (0.5,)


def test_a_share_is_held_out() -> None:
    data = points(test=0.5)
    assert (data.class_counts.tolist(), torch.bincount(data.test[1]).tolist()) == ([1, 1], [2, 1])
    both = torch.cat([data.train[0], data.test[0]])[:, 0]
    assert sorted(both.tolist()) == [0, 1, 2, 3, 4]


def test_parts_that_number_their_classes_otherwise_agree_by_name() -> None:
    train = {"labels": [0, 0, 1, 2], "classes": ["ant", "bee", "cat"]}

    def named(labels: list[int], classes: list[str]) -> Any:
        test = {"labels": labels, "classes": classes}
        return load("dataset", class_path="own_datasets.Named", train=train, test=test)

    assert named([0, 1, 1], ["ant", "cat"]).test[1].tolist() == [0, 2, 2]
    assert named([2, 0], ["bee", "cat", "ant"]).test[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"test must have classes of train \(ant, bee, cat\), got 'dog'"):
        named([0, 1], ["ant", "dog"])


def test_labels_need_no_items_where_they_are_known() -> None:
    data = load("dataset", class_path="own_datasets.WithTargets", lazy=True, **LABELS)
    source = data.train[0].data
    assert (data.train[1].tolist(), source.read) == ([0, 0, 0, 1, 1], [0])
    data.train[0].index_select(0, torch.tensor([3, 1]))
    assert source.read == [0, 3, 1]


def test_what_is_drawn_once_is_drawn_by_the_seed() -> None:
    """The same each time, and the generators are left as they were; lazily, by the generators of the run."""
    noisy = {"labels": [0, 1, 1], "noisy": True}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, second, other = (points(init_args=noisy, seed=seed).train[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    lazy = points(init_args=noisy, lazy=True).train[0]
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    lazy.prefetch(torch.tensor([0]))
    assert torch.equal(states[0], torch.get_rng_state())
    assert not torch.equal(lazy[0], lazy[0])


WRONG = [
    ({"class_path": None}, "class_path must be the path of a Dataset"),
    ({"class_path": "own_datasets.Nothing"}, "class_path must be the path of a class or function"),
    ({"class_path": "torch.nn.Linear"}, "must name a class that is a Dataset"),
    ({"init_args": {"labels": "a"}}, "labels.*Expected"),
    ({"init_args": [1]}, r"init_args must be a mapping of arguments, got \[1\]"),
    ({"test": None}, "test must be the arguments of the test part, or the share"),
    ({"test": 3}, "test must be a mapping of arguments, got 3"),
    ({"test": 1.0}, "test must be a share below 1, got 1.0"),
    ({"test": {"kind": "array"}}, r"test must have inputs \[2\] of torch.float32 as those of train, got \[2, 2\]"),
    ({"imbalance": 3}, "imbalance must be None"),
    ({"init_args": {"labels": []}}, "must name a Dataset with items"),
    ({"init_args": {"labels": [0, -1]}}, "item 1 of Points must have a class index of at least 0 as label, got -1"),
    ({"init_args": {"labels": [0, 2]}}, "training sample of each class, got none of '1'"),
    ({"train": {"kind": "ragged"}}, r"item 1 of Points must have an input \[2\] of torch.float32 as the first one"),
    ({"train": {"kind": "words"}}, "item 0 of Points must have floating-point numbers or bytes as input, got"),
    ({"train": {"kind": "single"}}, r"item 0 of Points must be a pair \(input, label\), got Tensor"),
    ({"train": {"kind": "text"}}, "must have a class index of at least 0 as label, got 'low'"),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_wrong_datasets_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        points(**changes)
