"""Class-wise accuracy, the groups of the literature and the means, against numbers worked out by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from lt_kernels import metrics
from lt_kernels.data.profiles import exponential_counts
from lt_kernels.metrics import balanced_accuracy, geometric_mean, group_accuracy, per_class_accuracy

NAN = float("nan")


def same(left: dict[str, float], right: dict[str, float]) -> bool:
    pairs = [(left[name], right[name]) for name in right]
    return set(left) == set(right) and all(a == pytest.approx(b) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def test_per_class_accuracy_by_hand():
    target = torch.tensor([0, 0, 0, 1, 1, 3])
    prediction = torch.tensor([0, 1, 0, 1, 1, 0])
    found = per_class_accuracy(prediction, target, 4)
    assert found.dtype == torch.float64
    assert torch.equal(found[:2], torch.tensor([2 / 3, 1], dtype=torch.float64))
    assert found[2].isnan()
    assert found[3] == 0
    assert torch.equal(per_class_accuracy(prediction.view(2, 3), target.view(2, 3), 2 + 2)[:2], found[:2])


def test_a_prediction_outside_the_classes_is_wrong():
    assert per_class_accuracy(torch.tensor([7, 1]), torch.tensor([1, 1]), 2)[1] == 0.5


@pytest.mark.parametrize(
    "prediction, target, classes, name",
    [
        (torch.tensor([0]), torch.tensor([0, 1]), 2, "prediction"),
        (torch.tensor([0.0]), torch.tensor([0]), 2, "prediction"),
        (torch.tensor([0]), torch.tensor([2]), 2, "target"),
        (torch.tensor([0]), torch.tensor([-1]), 2, "target"),
        (torch.tensor([0]), torch.tensor([0]), 0, "num_classes"),
    ],
)
def test_per_class_accuracy_names_the_bad_argument(prediction, target, classes, name):
    with pytest.raises((ValueError, TypeError), match=name):
        per_class_accuracy(prediction, target, classes)


def sizes(imbalance: float, **options) -> tuple[int, int, int]:
    """How many classes of CIFAR-100-LT each group has: the accuracy 1 of its classes, divided by that of all."""
    counts = exponential_counts(500, 100, imbalance)
    found = []
    for group in ("many", "medium", "few"):
        members = torch.zeros(100)
        for c in range(100):
            one = torch.zeros(100)
            one[c] = 1
            members[c] = group_accuracy(one, counts, **options)[group] > 0
        found.append(int(members.sum()))
    return found[0], found[1], found[2]


def test_groups_of_cifar_100_lt():
    assert sizes(100) == (35, 35, 30)
    assert sizes(100, convention="ncl") == (35, 34, 31)  # class 69 has exactly 20 images
    many, medium, few = sizes(10)
    assert few == 0
    assert sizes(10, convention="ncl") == (many + 1, medium - 1, 0)  # a class with exactly 100


def test_thresholds_belong_to_medium_in_the_standard_convention_only():
    counts, accuracy = [101, 100, 20, 19], [0.1, 0.2, 0.4, 0.8]
    assert same(group_accuracy(accuracy, counts), dict(many=0.1, medium=0.3, few=0.8, all=0.375))
    assert same(group_accuracy(accuracy, counts, convention="ncl"), dict(many=0.15, medium=NAN, few=0.6, all=0.375))
    assert same(group_accuracy(accuracy, counts, many=19, few=5), dict(many=0.7 / 3, medium=0.8, few=NAN, all=0.375))


def test_a_class_on_the_lower_threshold_is_in_no_group_of_the_strict_convention():
    assert sizes(100, convention="strict") == (35, 34, 30)  # not class 69, with its 20 images
    counts, accuracy = [101, 100, 21, 20, 19], [0.1, 0.2, 0.3, 1.0, 0.8]
    found = group_accuracy(accuracy, counts, convention="strict")
    assert same(found, dict(many=0.1, medium=0.25, few=0.8, all=0.48))
    found = group_accuracy(accuracy, counts, many=100, few=100, convention="strict")
    assert same(found, dict(many=0.1, medium=NAN, few=2.1 / 3, all=0.48))


def test_groups_by_index():
    accuracy = torch.arange(100) / 100
    ranges = {"many": range(36), "medium": range(36, 71), "few": range(71, 100)}
    expected = dict(many=0.175, medium=0.53, few=0.85, all=0.495)  # means of the first and the last
    assert same(group_accuracy(accuracy, groups=ranges), expected)
    assert same(group_accuracy(accuracy, exponential_counts(500, 100, 10), groups=ranges), expected)
    given = {"head": [2, 0], "tail": torch.tensor([1], dtype=torch.int32), "none": []}
    found = group_accuracy([1.0, 0.5, NAN], groups=given, test_counts=[3, 1, 0])
    assert same(found, dict(head=1.0, tail=0.5, none=NAN, all=3.5 / 4))


def test_groups_by_index_are_those_of_the_counts():
    counts = torch.tensor([500, 3, 40, 20, 100, 101, 19])
    accuracy = torch.rand(7, generator=torch.Generator().manual_seed(1))
    members = {"many": [0, 5], "medium": [2, 3, 4], "few": [6, 1]}
    assert same(group_accuracy(accuracy, groups=members), group_accuracy(accuracy, counts))


def test_untested_classes_do_not_count_and_pooling_weighs_by_samples():
    counts, accuracy = [500, 200, 50, 5], [1.0, NAN, 0.5, 0.25]
    assert same(group_accuracy(accuracy, counts), dict(many=1.0, medium=0.5, few=0.25, all=1.75 / 3))
    pooled = group_accuracy([1.0, 0.5, 0.5, 0.25], counts, test_counts=[10, 30, 4, 4])
    assert same(pooled, dict(many=25 / 40, medium=0.5, few=0.25, all=28 / 48))
    target = torch.tensor([0] * 10 + [1] * 30 + [2] * 4 + [3] * 4)
    prediction = torch.cat([target[:10], target[10:25], torch.zeros(15, dtype=torch.int64), torch.tensor([2, 2, 0, 0]),
                            torch.tensor([3, 0, 0, 0])])  # fmt: skip
    right = (prediction == target).double()
    per_class = per_class_accuracy(prediction, target, 4)
    found = group_accuracy(per_class, counts, convention="ncl", test_counts=target.bincount())
    assert same(found, dict(many=float(right[:40].mean()), medium=0.5, few=0.25, all=float(right.mean())))


def test_groups_do_not_depend_on_the_order_of_the_classes():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 300, (50,), generator=generator)
    accuracy = torch.rand(50, generator=generator)
    order = torch.randperm(50, generator=generator)
    assert same(group_accuracy(accuracy, counts), group_accuracy(accuracy[order], counts[order]))


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(convention="other"), "convention"),
        (dict(few=120), "few"),
        (dict(few=100, convention="ncl"), "few"),
        (dict(class_counts=[1, 2]), "class_counts"),
        (dict(test_counts=[1, 2]), "test_counts"),
        (dict(per_class=[0.1, 1.2, 0.3]), "per_class .* 1.2"),
        (dict(per_class=[[0.1]]), "per_class"),
        (dict(few=120, convention="strict"), "few"),
        (dict(class_counts=None), "class_counts"),
        (dict(groups=[[0], [1]]), "groups"),
        (dict(groups={"all": [0]}), "groups"),
        (dict(groups={"few": [0, 3]}), r"groups\['few'\] must be in 0\.\.2, got 0\.\.3"),
        (dict(groups={"few": [-1]}), "groups"),
        (dict(groups={"few": [1, 1]}), "groups.*once"),
        (dict(groups={"few": [0.5]}), "groups"),
        (dict(groups={"few": ["cat"]}), "groups"),
        (dict(groups={"few": 3}), "groups"),
        (dict(groups={"few": [0]}, class_counts=[1, 2]), "class_counts"),
    ],
)
def test_group_accuracy_names_the_bad_argument(options, name):
    with pytest.raises((ValueError, TypeError), match=name):
        group_accuracy(**{"per_class": [0.1, 0.2, 0.3], "class_counts": [500, 50, 5], **options})


def test_geometric_mean_by_hand():
    assert geometric_mean([0.25, 1.0]) == pytest.approx(0.5)
    assert geometric_mean([0.0, 1.0]) == pytest.approx(math.sqrt(1e-3))
    assert geometric_mean([0.0, 0.5, NAN], eps=0.02) == pytest.approx(0.1)
    assert geometric_mean([1e-4, 1.0]) == pytest.approx(1e-2)  # only exact zeros are replaced
    assert math.isnan(geometric_mean([NAN]))
    with pytest.raises(ValueError, match="eps"):
        geometric_mean([0.5], eps=0.0)


def test_geometric_mean_is_at_most_the_balanced_accuracy():
    accuracy = torch.rand(40, generator=torch.Generator().manual_seed(3))
    assert geometric_mean(accuracy) <= balanced_accuracy(accuracy)
    assert geometric_mean([0.3] * 7) == pytest.approx(balanced_accuracy([0.3] * 7)) == pytest.approx(0.3)


def test_balanced_accuracy_is_the_mean_over_tested_classes():
    assert balanced_accuracy([0.5, NAN, 1.0]) == 0.75
    assert math.isnan(balanced_accuracy([NAN, NAN]))
    accuracy = torch.tensor([0.5, 0.25, 0.75])
    assert balanced_accuracy(accuracy) == group_accuracy(accuracy, [500, 50, 5])["all"]


def test_every_metric_has_its_section():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE)) == sorted(metrics.__all__)
    assert [name for name in metrics.__all__ if not getattr(metrics, name).__doc__] == []
