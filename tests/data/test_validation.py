"""Samples held out of the training set to choose settings on: which, how many, and what a run does with them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from lt_kernels.cli import main
from lt_kernels.data import LongTailedData, load, validation_split
from lt_kernels.data.images import ImageList


def rows_of(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def test_each_class_gives_so_many_and_at_most_half() -> None:
    data = load("digits-lt")
    split = validation_split(data, 10, seed=3)
    assert data.class_counts.tolist() == [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]
    assert torch.bincount(split.test[1], minlength=10).tolist() == [10, 10, 10, 10, 8, 4, 2, 1, 1, 0]
    assert split.class_counts.tolist() == [114, 64, 34, 16, 8, 5, 3, 2, 1, 1]
    held, kept = rows_of(split.test[0]), rows_of(split.train[0])
    assert not held & kept
    assert held | kept == rows_of(data.train[0])
    assert not held & rows_of(data.test[0])


def test_the_seed_alone_says_which() -> None:
    data = load("digits-lt")
    first, again, other = (validation_split(data, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(first.test[0], again.test[0])
    assert not torch.equal(first.test[0], other.test[0])


def test_pictures_stay_in_their_files_and_are_cut_as_those_of_the_test() -> None:
    target = torch.tensor([0, 0, 0, 1, 1])
    data = LongTailedData(
        name="pictures",
        train=(ImageList([f"{row}.png" for row in range(5)], "root", 64, 60), target),  # pyright: ignore[reportArgumentType]
        test=(ImageList(["5.png"], "root", 64, 32), torch.tensor([0])),  # pyright: ignore[reportArgumentType]
        class_counts=torch.tensor([3, 2]),
        num_classes=2,
        input_kind="image",
        class_names=("a", "b"),
    )
    split = validation_split(data, 1)
    held, kept = split.test[0], split.train[0]
    assert isinstance(held, ImageList)
    assert isinstance(kept, ImageList)
    assert (held.shape, kept.shape) == ((2, 3, 32, 32), (3, 3, 60, 60))
    assert sorted(held.files + kept.files) == [f"{row}.png" for row in range(5)]


def test_what_cannot_be_held_out_is_refused() -> None:
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        validation_split(load("digits-lt"), 0)
    with pytest.raises(ValueError, match="one class a sample"):
        validation_split(load("digit-scenes"), 1)
    data = load("digits-lt")
    first = torch.tensor([int((data.train[1] == label).nonzero()[0]) for label in range(10)])
    single = dataclasses.replace(
        data, train=(data.train[0][first], data.train[1][first]), class_counts=torch.ones(10, dtype=torch.int64)
    )
    with pytest.raises(ValueError, match="a class with two training samples"):
        validation_split(single, 1)


def test_a_run_is_judged_by_what_is_held_out(tmp_path, capsys) -> None:
    words = ["compare", "--data", "digits-lt", "--methods", "ce", "--seeds", "1", "--epochs", "2", "--quiet"]
    quick = ["--set", "validation=10", "--set", "warmup_epochs=1", "--jobs", "1"]
    assert main([*words, *quick, "--out", str(tmp_path / "runs")]) == 0
    assert "accuracy on validation samples" in capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "ce" / "seed-0" / "result.json").read_text())
    assert result["samples"] == {"train": 248, "test": 56}
    assert result["class_counts"] == [114, 64, 34, 16, 8, 5, 3, 2, 1, 1]
    report = (tmp_path / "runs" / "report.html").read_text()
    assert "248 training and 56 validation samples" in report
    assert "test set" not in report
    assert json.loads((tmp_path / "runs" / "table.json").read_text())["validation_samples"] == 56
