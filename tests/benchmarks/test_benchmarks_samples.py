"""What the pictures of the data sets show: which classes, how many images of each, and where there are none."""

from __future__ import annotations

import pytest
import torch

from lt_kernels.data import LongTailedData

samples = pytest.importorskip("benchmarks.tables.samples", reason="matplotlib is not installed", exc_type=ImportError)


def data(counts: list[int]) -> LongTailedData:
    """Images of 2 x 2 pixels whose value is their class, 4 of each class in the test."""
    target = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    tested = torch.arange(len(counts)).repeat_interleave(4)
    train, test = ((one.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8), one) for one in (target, tested))
    names = tuple(f"class {index}" for index in range(len(counts)))
    return LongTailedData("tiny", train, test, torch.tensor(counts), len(counts), "image", names)


def test_all_of_few_classes_are_shown_and_of_many_some_from_the_first_to_the_last() -> None:
    assert samples.shown(torch.tensor([3, 9, 1])) == [1, 0, 2]
    many = samples.shown(torch.arange(8142, 0, -1))
    assert many[:3] == [0, 2, 6]
    assert many[-1] == 8141
    assert len(many) == samples.CLASSES


def test_a_row_has_the_images_that_there_are_and_white_in_place_of_others() -> None:
    row = samples.strip(data([12, 3]), 1)
    training, test = samples.COLUMNS.values()
    assert row.shape == (2, 2 * training + samples.GAP + 2 * test)
    assert (row[:, :6] == 1).all()  # three training images
    assert (row[:, 6 : 2 * training + samples.GAP] == 255).all()
    assert (row[:, 2 * training + samples.GAP :] == 1).all()  # as many of the test's as there is place for


def test_a_picture_names_each_class_with_the_number_of_its_training_images() -> None:
    (axis,) = samples.samples(data([12, 1003])).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["class 1: 1,003", "class 0: 12"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["training images", "test images"]
