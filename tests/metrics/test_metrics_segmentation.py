"""Intersection over union and the accuracy of pixels: by hand, by laws, and from torchmetrics' confusion matrix."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import classes_of
from tolerances import assert_close

from lt_kernels.metrics import mean_iou, per_class_accuracy

NAN = float("nan")
TARGET = torch.tensor([[0, 0, 1], [1, 2, 255]])
PREDICTION = torch.tensor([[0, 1, 1], [1, 0, 1]])


def test_by_hand():
    """Five pixels count: right 1, 2, 0; in the target 2, 2, 1; predicted 2, 3, 0; class 3 is nowhere."""
    found = mean_iou(PREDICTION, TARGET, 4, ignore_index=255)
    assert set(found) == {"per_class", "mean_iou", "mean_pixel_accuracy", "pixel_accuracy"}
    assert_close(found["per_class"], torch.tensor([1 / 3, 2 / 3, 0, NAN], dtype=torch.float64))
    assert found["mean_iou"] == pytest.approx(1 / 3)
    assert found["mean_pixel_accuracy"] == pytest.approx(0.5)
    assert found["pixel_accuracy"] == pytest.approx(0.6)


def test_a_class_that_is_predicted_in_vain_has_zero_and_no_accuracy():
    found = mean_iou(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)
    assert_close(found["per_class"], torch.tensor([0.5, 0, NAN], dtype=torch.float64))
    assert (found["mean_iou"], found["mean_pixel_accuracy"], found["pixel_accuracy"]) == (0.25, 0.5, 0.5)


def test_an_ignored_class_does_not_count_and_its_name_is_a_wrong_prediction():
    found = mean_iou(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 3, ignore_index=0)
    assert_close(found["per_class"], torch.tensor([NAN, 0.5, 0], dtype=torch.float64))
    found = mean_iou(torch.tensor([1, 0]), torch.tensor([1, 1]), 2, ignore_index=0)
    assert_close(found["per_class"], torch.tensor([NAN, 0.5], dtype=torch.float64))
    assert (found["mean_iou"], found["pixel_accuracy"]) == (0.5, 0.5)


def test_a_prediction_under_an_ignored_pixel_may_be_anything():
    ignored = torch.tensor([7, -100, 1])
    plain = mean_iou(torch.tensor([5, 1, 1]), torch.where(ignored == 7, -100, ignored), 2, ignore_index=-100)
    assert plain["mean_iou"] == 1


def test_nothing_to_count_is_nan():
    for target in (torch.zeros(0, dtype=torch.int64), torch.full((3,), 9)):
        found = mean_iou(torch.zeros_like(target), target, 2, ignore_index=9)
        assert found["per_class"].isnan().all()
        assert all(math.isnan(found[key]) for key in ("mean_iou", "mean_pixel_accuracy", "pixel_accuracy"))


def test_laws():
    target, prediction = classes_of(300, 6, 1), classes_of(300, 6, 2)
    prediction = torch.where(torch.arange(300) % 2 == 0, target, prediction)
    plain = mean_iou(prediction, target, 6)
    assert mean_iou(target, target, 6)["mean_iou"] == 1
    assert torch.equal(mean_iou(target, prediction, 6)["per_class"], plain["per_class"])  # symmetric
    order = torch.tensor([5, 3, 0, 1, 2, 4])
    assert torch.equal(mean_iou(order[prediction], order[target], 6)["per_class"][order], plain["per_class"])
    assert plain["mean_pixel_accuracy"] == pytest.approx(float(per_class_accuracy(prediction, target, 6).mean()))
    assert plain["pixel_accuracy"] == pytest.approx(float((prediction == target).double().mean()))
    assert plain["mean_iou"] < plain["mean_pixel_accuracy"]


@pytest.mark.parametrize("ignore_index", [None, -1, 255])
def test_torchmetrics_counts_the_same(ignore_index):
    functional = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    target, prediction = classes_of(240, 5, 3).view(2, 10, 12), classes_of(240, 5, 4).view(2, 10, 12)
    prediction = torch.where(target < 3, target.flip(2), prediction)
    if ignore_index is not None:
        target = torch.where(classes_of(240, 4, 5).view(2, 10, 12) == 0, ignore_index, target)
    table = functional.multiclass_confusion_matrix(
        prediction, target, num_classes=6, ignore_index=ignore_index
    ).double()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    found = mean_iou(prediction, target, 6, ignore_index)
    assert_close(found["per_class"], table.diagonal() / union)
    assert found["mean_iou"] == pytest.approx(float((table.diagonal() / union)[:5].mean()))
    assert found["mean_pixel_accuracy"] == pytest.approx(float((table.diagonal() / table.sum(1))[:5].mean()))
    assert found["pixel_accuracy"] == pytest.approx(float(table.trace() / table.sum()))


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((PREDICTION, TARGET, 4), r"target must be in 0\.\.3, got 0\.\.255"),
        ((PREDICTION, TARGET, 2, 255), "target"),
        ((PREDICTION + 3, TARGET, 4, 255), "prediction"),
        ((PREDICTION[:1], TARGET, 4, 255), "prediction"),
        ((PREDICTION.float(), TARGET, 4, 255), "prediction"),
        ((PREDICTION, TARGET.double(), 4, 255), "target"),
        ((PREDICTION, TARGET, 0, 255), "num_classes"),
        ((PREDICTION, TARGET, 4, 255.0), "ignore_index"),
    ],
)
def test_errors_name_the_argument(arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        mean_iou(*arguments)
