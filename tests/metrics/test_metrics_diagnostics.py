"""Where a classifier errs, and how sure it is: by hand and by laws."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import classes_of, counts_of, normal
from tolerances import TOLERANCE, assert_close
from torch import Tensor

from lt_kernels import metrics
from lt_kernels.metrics import (
    class_means,
    cumulative_false_positives,
    empirical_offsets,
    expected_calibration_error,
    false_positives,
    logit_statistics,
    per_class_accuracy,
)

NAN = float("nan")
PREDICTION, TARGET = torch.tensor([0, 1, 1, 0, 1, 2]), torch.tensor([0, 0, 1, 2, 2, 2])


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_false_positives_by_hand():
    assert torch.equal(false_positives(PREDICTION, TARGET, 4), tensor(1, 2, 0, 0))
    assert torch.equal(cumulative_false_positives(PREDICTION, TARGET, [5, 9, 2]), tensor(2, 3, 3))
    assert torch.equal(cumulative_false_positives(PREDICTION, TARGET, [2, 9, 9]), tensor(2, 2, 3))  # ties by index
    assert torch.equal(cumulative_false_positives(PREDICTION, TARGET, torch.tensor([9, 1, 9])), tensor(1, 1, 3))
    assert torch.equal(false_positives(PREDICTION.view(2, 3), TARGET.view(2, 3).int(), 3), tensor(1, 2, 0))


def test_false_positives_end_at_the_number_of_errors():
    prediction, target, counts = classes_of(400, 9, 1), classes_of(400, 9, 2), counts_of(9, 3)
    found = cumulative_false_positives(prediction, target, counts)
    assert found[-1] == (prediction != target).sum() == false_positives(prediction, target, 9).sum()
    assert (found.diff() >= 0).all()
    assert cumulative_false_positives(target, target, counts).sum() == 0
    head = set(counts.argsort(descending=True)[:4].tolist())
    assert found[3] == sum(p != t and p in head for p, t in zip(prediction.tolist(), target.tolist(), strict=True))
    order = torch.tensor([3, 1, 0, 2, 8, 7, 6, 5, 4])  # another name for each class
    named = torch.zeros(9).index_copy(0, order, counts.float())
    assert torch.equal(cumulative_false_positives(order[prediction], order[target], named), found)


def test_calibration_by_hand():
    """Five bins, of which (0, 0.2], (0.2, 0.4] and (0.8, 1] are used: gaps 0.35, 0.75 and 0.45."""
    confidence, correct = tensor(0.1, 0.2, 0.25, 0.9, 1.0), torch.tensor([False, True, True, True, False])
    assert expected_calibration_error(confidence, correct, 5) == pytest.approx(0.47)
    assert expected_calibration_error(confidence.float(), correct.double(), bins=5) == pytest.approx(0.47)
    assert expected_calibration_error(tensor(0, 0.5), torch.tensor([1, 1]), 2) == 0.25  # the 0 is in no bin
    assert expected_calibration_error(confidence, correct, 1) == pytest.approx(0.6 - 0.49)
    assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_edges_belong_to_the_bin_below_in_every_dtype(dtype):
    """One sample on each edge but 0: alone in its bin, so each gap is its own, 1 - k / 15."""
    edges = (torch.arange(1, 16).double() / 15).to(dtype)
    exact = float((1 - edges.double()).mean())
    assert expected_calibration_error(edges, torch.ones(15, dtype=torch.bool)) == pytest.approx(exact, rel=1e-12)


def test_calibration_is_the_formula_in_any_order():
    confidence = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    correct = confidence.square() > classes_of(500, 100, 2) / 100
    exact = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        exact += float(inside.double().mean() * (correct[inside].double().mean() - confidence[inside].mean()).abs())
    assert expected_calibration_error(confidence, correct) == pytest.approx(exact, rel=1e-12)
    assert expected_calibration_error(confidence.flip(0), correct.flip(0)) == pytest.approx(exact, rel=1e-12)
    assert abs(float(correct.double().mean() - confidence.mean())) < exact < 1


def test_torchmetrics_agrees_between_edges_and_differs_on_them():
    functional = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    probability, target = normal(200, 4, seed=5).softmax(1), classes_of(200, 4, 6)
    theirs = functional.multiclass_calibration_error(probability, target, num_classes=4, n_bins=15, norm="l1")
    confidence, prediction = probability.max(1)
    found = expected_calibration_error(confidence, prediction == target)
    assert found == pytest.approx(float(theirs), rel=TOLERANCE[torch.float32])  # in which torchmetrics computes
    halves, target = tensor([0.5, 0.3, 0.2], [0.4, 0.3, 0.3]), torch.tensor([0, 1])
    theirs = functional.multiclass_calibration_error(halves, target, num_classes=3, n_bins=2, norm="l1")
    assert float(theirs) == pytest.approx(0.45)  # 0.5 counts in [0.5, 1)
    assert expected_calibration_error(halves.max(1).values, target == 0, 2) == pytest.approx(0.05)


def test_logit_statistics_by_hand():
    found = logit_statistics(torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0], [5.0, 6.0, 0.0]]), torch.tensor([0, 0, 1]))
    assert_close(found["positive"], tensor(2, 6, NAN))
    assert_close(found["negative"], tensor(5, 3, 6))
    assert found["log_classes"] == pytest.approx(math.log(3))
    alone = logit_statistics(torch.ones(2, 1), torch.tensor([0, 0]))
    assert alone["positive"].item() == 1
    assert alone["negative"].isnan().all()
    hidden = logit_statistics(torch.tensor([[0.5, -math.inf], [1.5, -2.0]]), torch.tensor([0, 1]))
    assert torch.equal(hidden["positive"], tensor(0.5, -2))
    assert torch.equal(hidden["negative"], tensor(1.5, -math.inf))


def test_logit_statistics_follow_shifts_and_order():
    logits, target = normal(60, 7, seed=1), classes_of(60, 7, 2)
    plain, moved = logit_statistics(logits, target), logit_statistics(2 * logits + 3, target)
    order = torch.tensor([6, 0, 5, 1, 4, 2, 3])
    renamed = logit_statistics(logits[:, order.argsort()], order[target])
    for key in ("positive", "negative"):
        assert_close(moved[key], 2 * plain[key] + 3)
        assert_close(renamed[key][order], plain[key])
    members = (target == 4).double()
    assert_close(plain["positive"][4], logits[:, 4] @ members / members.sum())
    assert_close(plain["negative"][4], logits[:, 4] @ (1 - members) / (1 - members).sum())


def test_as_many_classes_as_species():
    classes, rows = 8142, 10_000
    prediction, target, counts = classes_of(rows, classes, 1), classes_of(rows, classes, 2), counts_of(classes, 3)
    prediction = torch.where(torch.arange(rows) % 3 > 0, target, prediction)
    errors = (prediction != target).sum()
    assert cumulative_false_positives(prediction, target, counts)[-1] == errors
    features, weight = normal(rows, 4, seed=4), normal(classes, 4, seed=5)
    means, absent = class_means(features, target, classes), target.bincount(minlength=classes) == 0
    assert torch.equal(means.isnan().any(1), absent)
    assert torch.equal(per_class_accuracy(prediction, target, classes).isnan(), absent)
    one = int(target[77])
    assert_close(means[one], features[target == one].mean(0))
    assert_close(empirical_offsets(features, target, weight)[one], means[one] @ weight[one] / 2)


CALLS = {
    "balance_metrics": lambda x, w, p, t: metrics.balance_metrics(w),
    "affinity_matrix": lambda x, w, p, t: metrics.affinity_matrix(w),
    "class_similarity": lambda x, w, p, t: metrics.class_similarity(w),
    "class_means": lambda x, w, p, t: class_means(x, t, 4),
    "fisher_separability": lambda x, w, p, t: metrics.fisher_separability(x, t, 4),
    "angular_distance": lambda x, w, p, t: metrics.angular_distance(x, t, w),
    "empirical_offsets": lambda x, w, p, t: empirical_offsets(x, t, w),
    "estimated_offsets": lambda x, w, p, t: metrics.estimated_offsets(2 * w, w),
    "logit_statistics": lambda x, w, p, t: logit_statistics(p, t),
    "gradient_components": lambda x, w, p, t: metrics.gradient_components(p, x, t, origin=w),
    "gradient_parts": lambda x, w, p, t: metrics.gradient_parts(p, x, t, [3, 0], origin=w),
    "expected_calibration_error": lambda x, w, p, t: expected_calibration_error(p[:, 0], t == 0),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_only_in_float64_and_the_input_stays(name, dtype):
    """From parameters, of any dtype, the same as from their float64 copies; nothing has a graph or was changed."""
    kinds = normal(30, 3, seed=1), normal(4, 3, seed=2), normal(30, 4, seed=3).softmax(1)
    given = [kind.to(dtype).requires_grad_() for kind in kinds]
    before, target = [one.detach().clone() for one in given], classes_of(30, 4, 4).int()
    wide = [one.double() for one in before]
    found, exact = CALLS[name](*given, target), CALLS[name](*wide, target.long())
    found, exact = (value if isinstance(value, dict) else {"value": value} for value in (found, exact))
    for key, value in found.items():
        result, wanted = (one if isinstance(one, Tensor) else tensor(one) for one in (value, exact[key]))
        assert result.dtype == torch.float64
        assert not result.requires_grad
        assert_close(result, wanted, name=key)
    assert all(torch.equal(one, copy) for one, copy in zip(given, before, strict=True))


ROWS = torch.ones(6, 2)


@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (false_positives, (PREDICTION, TARGET, 2), "target"),
        (false_positives, (PREDICTION + 1, TARGET, 3), r"prediction must be in 0\.\.2, got 1\.\.3"),
        (false_positives, (PREDICTION, TARGET, True), "num_classes"),
        (false_positives, (PREDICTION[:3], TARGET, 3), "prediction"),
        (false_positives, ([0, 1], TARGET, 3), "prediction"),
        (false_positives, (PREDICTION, [0], 3), "target"),
        (cumulative_false_positives, (PREDICTION, TARGET, [5, NAN, 2]), "class_counts"),
        (cumulative_false_positives, (PREDICTION, TARGET, [5, 9]), "target"),
        (expected_calibration_error, (tensor(0.5, 1.5), torch.ones(2)), r"confidence must be in \[0, 1\], got 1.5"),
        (expected_calibration_error, (tensor(0.5, NAN), torch.ones(2)), "confidence .* nan"),
        (expected_calibration_error, (torch.ones(2, dtype=torch.int64), torch.ones(2)), "confidence"),
        (expected_calibration_error, (torch.ones(2, 1), torch.ones(2, 1)), "confidence"),
        (expected_calibration_error, (torch.ones(2), torch.ones(3)), "correct"),
        (expected_calibration_error, (torch.ones(2), [1, 1]), "correct"),
        (expected_calibration_error, (torch.ones(2), tensor(1, 0.5)), "correct .* 0.5"),
        (expected_calibration_error, (torch.ones(2), torch.ones(2), 0), "bins"),
        (logit_statistics, (ROWS[0], TARGET), "logits"),
        (logit_statistics, (ROWS, TARGET), "target"),
        (logit_statistics, (ROWS.long(), TARGET), "logits"),
        (logit_statistics, (torch.ones(6, 3), TARGET[:5]), "target"),
    ],
)
def test_errors_name_the_argument(function, arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        function(*arguments)
