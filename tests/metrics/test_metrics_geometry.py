"""Where class weights and features lie: numbers worked out by hand, laws, and the formulas written out densely."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.metrics import (
    affinity_matrix,
    angular_distance,
    balance_metrics,
    class_means,
    class_similarity,
    empirical_offsets,
    estimated_offsets,
    fisher_separability,
    geometry,
)

NAN, INF = float("nan"), float("inf")
HAND = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])  # products 0, 1 and 2; norms 1, 2 and sqrt 2


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rotation(size: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def simplex(classes: int) -> Tensor:
    """C unit vectors with all cosines -1 / (C - 1), turned at random."""
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return math.sqrt(classes / (classes - 1)) * centred @ rotation(classes)


def clouds(rows: int = 60, classes: int = 5, size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Features around a mean for each class, in stretched clouds."""
    target = classes_of(rows, classes, seed)
    stretched = normal(rows, size, seed=seed) @ normal(size, size, seed=seed + 1)
    return stretched + 2 * normal(classes, size, seed=seed + 2)[target], target


def test_balance_by_hand():
    found = balance_metrics(HAND)
    assert found == pytest.approx(dict(dot=2 / 3, angle=1 / 9, norm=7 / 3 - ((3 + math.sqrt(2)) / 3) ** 2))
    assert balance_metrics(HAND, pairs="(c-1)^2")["dot"] == pytest.approx(1.375)  # mu = 6/4, then 2 (9 + 1 + 1) / 16


@pytest.mark.parametrize("classes", [2, 3, 12, 100, 1000])
def test_a_simplex_frame_is_balanced(classes):
    """Not exactly 0: each product is rounded by some 1e-16, and the square of that is what remains."""
    found = balance_metrics(simplex(classes))
    assert max(found.values()) < 1e-28
    printed = balance_metrics(simplex(classes), pairs="(c-1)^2")
    expected = classes / (classes - 1) ** 5
    assert printed["dot"] == pytest.approx(expected, rel=1e-9)
    assert printed["angle"] == pytest.approx(expected, rel=1e-9)
    assert printed["norm"] == found["norm"]


def test_the_printed_divisor_at_twelve_classes():
    assert balance_metrics(simplex(12), pairs="(c-1)^2")["angle"] == pytest.approx(7.45e-5, rel=1e-3)


def test_balance_does_not_depend_on_rotation_or_order_and_scales():
    weight = normal(20, 7, seed=3)
    plain = balance_metrics(weight)
    for same in (weight @ rotation(7), weight.flip(0)):
        assert balance_metrics(same) == pytest.approx(plain, rel=1e-12)
    scaled = balance_metrics(3 * weight)
    assert scaled == pytest.approx(dict(dot=81 * plain["dot"], angle=plain["angle"], norm=9 * plain["norm"]))
    stretched = weight * torch.arange(1, 21).double()[:, None]
    assert balance_metrics(stretched)["angle"] == pytest.approx(plain["angle"], rel=1e-12)


@pytest.mark.parametrize("pairs, divisor", [("c(c-1)", 90), ("(c-1)^2", 81)])
def test_balance_by_slabs_is_the_formula(monkeypatch, pairs, divisor):
    monkeypatch.setattr(geometry, "_SLAB", 30)  # three rows at a time, the last slab one
    weight = normal(10, 4, seed=8)
    others = ~torch.eye(10, dtype=torch.bool)
    unit = weight / weight.norm(dim=1, keepdim=True)
    for name, rows in (("dot", weight), ("angle", unit)):
        products = (rows @ rows.T)[others]
        exact = (products - products.sum() / divisor).square().sum() / divisor
        assert balance_metrics(weight, pairs)[name] == pytest.approx(float(exact), rel=1e-12)


def test_a_zero_row_has_no_angle():
    found = balance_metrics(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    assert math.isnan(found["angle"])
    assert found["dot"] == 0
    assert found["norm"] == pytest.approx(2 / 9)
    assert all(math.isnan(value) for value in balance_metrics(torch.tensor([[1.0], [NAN], [2.0]])).values())


def test_affinity_by_hand():
    assert_close(affinity_matrix(HAND), tensor([0, 0, 1], [0, 0, 1], [1 / 3, 2 / 3, 0]))
    signs = affinity_matrix(torch.tensor([[1.0], [2.0], [-1.0]]))  # products 2, -1 and -2
    assert torch.equal(signs[0], tensor(0, 2, -1))
    assert signs[1].isnan().all()  # 2 - 2
    assert_close(signs[2], tensor(1 / 3, 2 / 3, 0))


def test_affinity_is_even_on_a_simplex_frame_and_rows_sum_to_one():
    even = (1 - torch.eye(6, dtype=torch.float64)) / 5
    assert_close(affinity_matrix(simplex(6)), even)
    weight = normal(9, 4, seed=2) + 1
    assert_close(affinity_matrix(weight).sum(1), torch.ones(9, dtype=torch.float64))
    assert_close(affinity_matrix(7 * weight @ rotation(4)), affinity_matrix(weight))
    order = torch.tensor([3, 1, 0, 2, 8, 7, 6, 5, 4])
    assert_close(affinity_matrix(weight[order]), affinity_matrix(weight)[order][:, order])


def test_similarity_by_hand():
    half = math.sqrt(0.5)
    assert_close(class_similarity(HAND), tensor([1, 0, half], [0, 1, half], [half, half, 1]))
    assert torch.equal(class_similarity(normal(50, 9, seed=4)).diagonal(), torch.ones(50, dtype=torch.float64))
    far = torch.tensor([[1e-200, 0], [1e200, 1e200]], dtype=torch.float64)
    assert_close(class_similarity(far), tensor([1, half], [half, 1]))
    found = class_similarity(torch.tensor([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]))
    assert torch.equal(found[0].isnan(), torch.tensor([False, True, False]))
    assert found[1].isnan().all()
    assert found[0, 2] == -1


def test_class_means_by_hand():
    found = class_means(torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]]), torch.tensor([2, 2, 0]), 3)
    assert found.dtype == torch.float64
    assert torch.equal(found[[0, 2]], tensor([5, 5], [2, 4]))
    assert found[1].isnan().all()
    assert class_means(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3).isnan().all()


def test_fisher_by_hand():
    """Means 0, 4, 3 and variances 1, 1, 9: ratios 16/2, 9/10 and 1/10."""
    features, target = torch.tensor([[-1.0], [1.0], [3.0], [5.0], [0.0], [6.0]]), torch.tensor([0, 0, 1, 1, 2, 2])
    assert_close(fisher_separability(features, target, 3, ridge=0.0), tensor(4.45, 4.05, 0.5))
    assert_close(fisher_separability(features, target, 3, ridge=0.25), tensor(4.45, 4.05, 0.5) / 1.25)
    assert_close(fisher_separability(features, target, 3), tensor(4.45, 4.05, 0.5) / (1 + 1e-6))


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("slab", [1, 32, 2**22])
def test_fisher_is_the_formula(monkeypatch, slab, ridge):
    monkeypatch.setattr(geometry, "_SLAB", slab)
    features, target = clouds()
    exact = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            both = [features[target == c] for c in (i, j)]
            scatter = sum(torch.cov(part.T, correction=0) for part in both)
            scatter = scatter + ridge * scatter.trace() / 4 * torch.eye(4, dtype=torch.float64)
            gap = both[0].mean(0) - both[1].mean(0)
            exact[i, j] = gap @ torch.linalg.inv(scatter) @ gap
    assert_close(fisher_separability(features, target, 5, ridge=ridge), exact.sum(1) / 4)


def test_fisher_is_the_best_of_all_directions():
    features, target = clouds(classes=2)
    best = fisher_separability(features, target, 2, ridge=0.0)
    assert best[0] == best[1]
    own, other = features[target == 0], features[target == 1]
    direction = torch.linalg.solve(own.T.cov(correction=0) + other.T.cov(correction=0), own.mean(0) - other.mean(0))
    steps = torch.cat([10.0**-n * normal(4, 200, seed=9 + n) for n in range(6)], 1)  # ever nearer to Fisher's
    along = features @ (direction[:, None] * (1 + steps))
    left, right = along[target == 0], along[target == 1]
    ratio = (left.mean(0) - right.mean(0)) ** 2 / (left.var(0, correction=0) + right.var(0, correction=0))
    assert 0.99 * best[0] < ratio.max() <= best[0] * (1 + 1e-12)


def test_fisher_does_not_depend_on_place_size_rotation_or_order():
    features, target = clouds()
    plain = fisher_separability(features, target, 5)
    for same in (features + 3, 40 * features, features @ rotation(4)):
        assert_close(fisher_separability(same, target, 5), plain)
    regular = fisher_separability(features, target, 5, ridge=0.0)
    assert_close(fisher_separability(features * tensor(1, 2, 3, 4), target, 5, ridge=0.0), regular)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert_close(fisher_separability(features, order[target], 5)[order], plain)


def test_fisher_without_samples_without_spread_and_alone():
    features, target = clouds()
    gap = fisher_separability(features, target + (target > 1).long(), 6)
    assert gap[2].isnan()
    assert_close(gap[[0, 1, 3, 4, 5]], fisher_separability(features, target, 5))
    points = torch.tensor([[0.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    assert fisher_separability(points[:2], torch.tensor([0, 1]), 2).tolist() == [INF, INF]
    assert fisher_separability(points[1:], torch.tensor([0, 1]), 2).isnan().all()  # the same point twice
    assert fisher_separability(points, torch.tensor([1, 1, 1]), 2).isnan().all()  # no other class
    assert fisher_separability(torch.where(features == features[0, 0], NAN, features), target, 5).isnan().all()
    with pytest.raises(ValueError, match="ridge"):
        fisher_separability(torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 1.0]]), torch.tensor([0, 0, 1]), 2, ridge=0.0)


def test_angles_by_hand():
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-5.0, 0.0], [0.0, 0.0]])
    found = angular_distance(features, torch.tensor([0, 0, 1, 0, 0]), torch.tensor([[2.0, 0.0], [7.0, 0.0]]))
    assert_close(found, tensor(0, math.pi / 2, math.pi / 4, math.pi, NAN))
    assert angular_distance(features, torch.ones(5, dtype=torch.int64), torch.tensor([[1.0, 0], [0, 0]])).isnan().all()


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-5, 0.3, 1.6, 3.1, math.pi - 1e-9])
def test_angles_keep_their_digits(angle):
    feature = 1e-30 * tensor([math.cos(angle), math.sin(angle)])
    found = angular_distance(feature, torch.tensor([0]), tensor([1e30, 0]))
    assert abs(float(found) - angle) < 1e-15
    assert angle > 1e-8 or float(feature[0, 0] / feature.norm()) == 1  # where the arc cosine says 0


def test_angles_do_not_depend_on_size_rotation_or_order():
    features, target = clouds()
    reference, turn = normal(5, 4, seed=6), rotation(4)
    plain = angular_distance(features, target, reference)
    assert_close(angular_distance(9 * features @ turn, target, 0.1 * reference @ turn), plain)
    assert_close(angular_distance(features.flip(0), 4 - target.flip(0), reference.flip(0)), plain.flip(0))
    own = torch.arange(5)
    assert_close(
        angular_distance(reference, own, reference[own.flip(0)]).cos(), class_similarity(reference)[own, 4 - own]
    )


def test_offsets_by_hand():
    features, target = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]]), torch.tensor([2, 2, 0])
    weight = torch.tensor([[2.0, 4.0], [1.0, 1.0], [-1.0, 0.5]])
    assert_close(empirical_offsets(features, target, weight), tensor(15, NAN, 0))
    centers = torch.tensor([[5.0, 5.0], [1.0, -3.0], [2.0, 4.0]])
    assert_close(estimated_offsets(centers, weight), tensor(15, -1, 0))
    features, target = clouds()
    weight = normal(5, 4, seed=7)
    means = class_means(features, target, 5)
    assert_close(empirical_offsets(features, target, weight), estimated_offsets(means, weight))
    assert_close(empirical_offsets(2 * features, target, -weight), -2 * empirical_offsets(features, target, weight))


ROWS, TARGET = torch.ones(3, 2), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (balance_metrics, (HAND, "c^2"), "pairs"),
        (balance_metrics, (torch.ones(1, 2),), "linear_weight"),
        (balance_metrics, (HAND.long(),), "linear_weight"),
        (balance_metrics, (torch.ones(3, 0),), "linear_weight"),
        (affinity_matrix, (torch.ones(1, 2),), "linear_weight"),
        (affinity_matrix, ([[1.0]],), "linear_weight"),
        (class_similarity, (torch.ones(3),), "linear_weight"),
        (class_similarity, (torch.ones(0, 3),), "linear_weight"),
        (class_means, (torch.ones(3), TARGET, 2), "features"),
        (class_means, (ROWS, TARGET[:2], 2), "target"),
        (class_means, (ROWS, TARGET, 1), r"target must be in 0\.\.0, got 0\.\.1"),
        (class_means, (ROWS, TARGET, 2.0), "num_classes"),
        (fisher_separability, (ROWS, TARGET.float(), 2), "target"),
        (fisher_separability, (ROWS.long(), TARGET, 2), "features"),
        (fisher_separability, (ROWS, TARGET, 0), "num_classes"),
        (lambda ridge: fisher_separability(ROWS, TARGET, 2, ridge=ridge), (-1.0,), "ridge"),
        (lambda ridge: fisher_separability(ROWS, TARGET, 2, ridge=ridge), (NAN,), "ridge"),
        (angular_distance, (ROWS, TARGET, torch.ones(2, 3)), "reference"),
        (angular_distance, (ROWS, TARGET - 1, ROWS), "target"),
        (angular_distance, (ROWS, TARGET, ROWS[:1]), "target"),
        (empirical_offsets, (ROWS, TARGET, torch.ones(2, 3)), "linear_weight"),
        (empirical_offsets, (ROWS, TARGET, torch.ones(1, 2)), "target"),
        (estimated_offsets, (ROWS, torch.ones(2, 2)), "linear_weight"),
        (estimated_offsets, (torch.ones(3), ROWS), "centers"),
    ],
)
def test_errors_name_the_argument(function, arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        function(*arguments)
