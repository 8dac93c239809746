"""The metrics of batches equal the functions of the whole, in whatever torchmetrics does with them."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks.launch import reports
from torch import Tensor
from torch.testing import assert_close

from lt_kernels import metrics

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from lt_kernels.integrations.torchmetrics import (  # noqa: E402  (which needs torchmetrics)
    BalancedAccuracy,
    ExpectedCalibrationError,
    GeometricMean,
    GroupAccuracy,
)

C, COUNTS, RANGES = 5, [300, 150, 60, 30, 4], {"first": range(2), "last": [4]}
GENERATOR = torch.Generator().manual_seed(0)
TARGET = torch.randint(C - 1, (200,), generator=GENERATOR)  # the last class is not tested
LOGITS = 2 * torch.randn(200, C, generator=GENERATOR) + 2 * torch.nn.functional.one_hot(TARGET, C)
MAKERS: dict[str, Callable[[], Any]] = {
    "balanced": lambda: BalancedAccuracy(C),
    "mean": lambda: GeometricMean(C, eps=0.2),
    "groups": lambda: GroupAccuracy(COUNTS, many=100, few=35),
    "pooled": lambda: GroupAccuracy(COUNTS, convention="ncl", few=30, weigh="samples"),
    "ranges": lambda: GroupAccuracy(COUNTS, groups=RANGES),
    "ece": lambda: ExpectedCalibrationError(C, bins=10),
    "ece of groups": lambda: ExpectedCalibrationError(C, COUNTS, bins=10, few=35),
    "ece of ranges": lambda: ExpectedCalibrationError(C, groups=RANGES),
}


def calibration(rows: Tensor, bins: int) -> float:
    best = LOGITS.softmax(1).max(1)
    right = best.indices == TARGET
    return metrics.expected_calibration_error(best.values[rows], right[rows], bins)


def expected(name: str) -> Any:
    """What the functions say of the whole."""
    per_class, tested = metrics.per_class_accuracy(LOGITS.argmax(1), TARGET, C), TARGET.bincount(minlength=C)
    none, every, first = torch.zeros(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool), TARGET < 2
    return {
        "balanced": lambda: metrics.balanced_accuracy(per_class),
        "mean": lambda: metrics.geometric_mean(per_class, 0.2),
        "groups": lambda: metrics.group_accuracy(per_class, COUNTS, 100, 35),
        "pooled": lambda: metrics.group_accuracy(per_class, COUNTS, 100, 30, "ncl", test_counts=tested),
        "ranges": lambda: metrics.group_accuracy(per_class, groups=RANGES),
        "ece": lambda: calibration(every, 10),
        "ece of groups": lambda: {
            "many": calibration(first, 10),
            "medium": calibration(TARGET == 2, 10),
            "few": calibration(TARGET == 3, 10),
            "all": calibration(every, 10),
        },
        "ece of ranges": lambda: {
            "first": calibration(first, 15),
            "last": calibration(none, 15),
            "all": calibration(every, 15),
        },
    }[name]()


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            same(found[name], wanted[name])
    else:
        assert_close(found, torch.tensor(wanted, dtype=torch.float64), equal_nan=True)


def gathered(metric: Any) -> Any:
    for start in range(0, 200, 70):
        metric.update(LOGITS[start : start + 70], TARGET[start : start + 70])
    return metric


@pytest.mark.parametrize("name", MAKERS)
def test_batches_have_the_value_of_the_whole(name: str) -> None:
    same(gathered(MAKERS[name]()).compute(), expected(name))


@pytest.mark.parametrize("name", MAKERS)
def test_reset_copies_and_pickles(name: str) -> None:
    metric = gathered(MAKERS[name]())
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone(), metric.double()):
        same(other.compute(), expected(name))
    metric.reset()
    same(gathered(metric).compute(), expected(name))
    assert metric.to("meta").device.type == "meta"


@pytest.mark.parametrize("name", MAKERS)
def test_forward_has_the_value_of_the_batch(name: str) -> None:
    metric = MAKERS[name]()
    metric(LOGITS[:50], TARGET[:50])
    half = MAKERS[name]()
    half.update(LOGITS[50:], TARGET[50:])
    found, wanted = metric(LOGITS[50:], TARGET[50:]), half.compute()
    for key in wanted if isinstance(wanted, dict) else ():
        assert_close(found[key], wanted[key], equal_nan=True)
    if not isinstance(wanted, dict):
        assert_close(found, wanted)
    same(metric.compute(), expected(name))


@pytest.mark.parametrize("name", MAKERS)
def test_ignored_rows_do_not_count(name: str) -> None:
    metric = gathered(MAKERS[name]())
    metric.update(LOGITS[:9], torch.full((9,), -100))
    same(metric.compute(), expected(name))


@pytest.mark.parametrize("name", MAKERS)
def test_places_of_an_image_are_rows(name: str) -> None:
    metric = MAKERS[name]()
    metric.update(LOGITS.reshape(2, 10, 10, C).movedim(-1, 1), TARGET.reshape(2, 10, 10))
    same(metric.compute(), expected(name))


def test_class_indices_are_predictions() -> None:
    metric = GroupAccuracy(COUNTS, many=100, few=35)
    metric.update(LOGITS.argmax(1), TARGET)
    same(metric.compute(), expected("groups"))


def test_another_dtype_leaves_the_groups() -> None:
    metric = gathered(ExpectedCalibrationError(C, COUNTS, bins=10, few=35).set_dtype(torch.float64))
    same(metric.compute(), expected("ece of groups"))


def test_probabilities_are_confidences() -> None:
    metric = ExpectedCalibrationError(C, bins=10, scores="probabilities")
    metric.update(LOGITS.softmax(1), TARGET)
    same(metric.compute(), expected("ece"))
    with pytest.raises(ValueError, match=r"preds must be in \[0, 1\]"):
        metric.update(LOGITS, TARGET)


def test_half_precision_is_as_sure_as_float32() -> None:
    metric, other = ExpectedCalibrationError(C), ExpectedCalibrationError(C)
    metric.update(LOGITS.bfloat16(), TARGET)
    other.update(LOGITS.bfloat16().float(), TARGET)
    assert torch.equal(metric.compute(), other.compute())


def test_a_collection_of_all() -> None:
    """What has the same counts shares them; the groups of two metrics stay apart by the metrics' names."""
    collection = torchmetrics.MetricCollection(
        {name: MAKERS[name]() for name in ("balanced", "mean", "groups", "ece of groups")}, prefix="val/"
    )
    found = gathered(collection).compute()
    assert len(found) == 2 + 4 + 4
    assert {"balanced", "mean", "groups"} in [set(group) for group in collection.compute_groups.values()]
    same(found["val/balanced"], expected("balanced"))
    same(found["val/groups_few"], expected("groups")["few"])
    same(found["val/ece of groups_few"], expected("ece of groups")["few"])


def test_a_collection_keeps_metrics_apart_that_ignore_other_rows() -> None:
    collection = torchmetrics.MetricCollection(
        {"all": BalancedAccuracy(3), "some": BalancedAccuracy(3, ignore_index=2)}
    )
    for target in ([0, 1], [2, 2]):  # the first batch has none of the ignored rows
        collection.update(torch.tensor([0, 0]), torch.tensor(target))
    found = collection.compute()
    assert found["all"] == pytest.approx(1 / 3)
    assert found["some"] == pytest.approx(1 / 2)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")  # torchmetrics', which is meant
def test_without_any_sample_nothing_is_known() -> None:
    assert math.isnan(BalancedAccuracy(C).compute())
    assert all(math.isnan(value) for value in GroupAccuracy(COUNTS).compute().values())
    assert math.isnan(ExpectedCalibrationError(C).compute())


BAD: list[tuple[str, Callable[[], Any]]] = [
    ("num_classes must be at least 1, got 0", lambda: BalancedAccuracy(0)),
    ("eps must be", lambda: GeometricMean(C, eps=0.0)),
    ("weigh must be one of 'classes', 'samples', got 'rows'", lambda: GroupAccuracy(COUNTS, weigh="rows")),
    ("few must be in 0..many = 100, got 200", lambda: GroupAccuracy(COUNTS, few=200)),
    ("few must be in 0..many = 100, got 200", lambda: ExpectedCalibrationError(C, COUNTS, few=200)),
    ("class_counts must have 5 entries, got 2", lambda: ExpectedCalibrationError(C, [1, 2])),
    ("scores must be one of", lambda: ExpectedCalibrationError(C, scores="scores")),
    ("preds must be [N, 5, ...], got [200, 4]", lambda: BalancedAccuracy(C).update(LOGITS[:, :4], TARGET)),
    ("target must be in 0..4, got 1..6", lambda: BalancedAccuracy(C).update(LOGITS[:2], torch.tensor([1, 6]))),
    ("target must have shape [200], got [3]", lambda: ExpectedCalibrationError(C).update(LOGITS, TARGET[:3])),
]


@pytest.mark.parametrize("message, call", BAD, ids=[message for message, _ in BAD])
def test_what_is_wrong_is_named(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("name", MAKERS)
def test_predictions_that_are_no_tensor_are_named(name: str) -> None:
    for preds in (LOGITS.argmax(1).tolist(), LOGITS.numpy()):
        with pytest.raises(TypeError, match=r"preds must be a tensor.*, got (list|ndarray)$"):
            MAKERS[name]().update(preds, TARGET)


@pytest.mark.slow
def test_two_processes_have_the_value_of_the_whole(tmp_path: Path) -> None:
    assert reports(Path(__file__).with_name("metrics_of_ranks.py"), 2, tmp_path) == {"": "", "synced": ""}
