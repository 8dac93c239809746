"""What moves a class weight in training: by hand, by laws, by autograd, and the published sums written out."""

from __future__ import annotations

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.losses import EstimatedOffsetLoss
from lt_kernels.metrics import gradient_components, gradient_parts, gradients

NAN = float("nan")


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gradient_components_by_hand():
    probability, features = torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    found = gradient_components(probability, features, torch.tensor([0, 1]))
    assert torch.equal(found["attraction"], tensor(0.25, 1))
    assert torch.equal(found["repulsion"], tensor(1, 0.25))
    found = gradient_components(probability, features, torch.tensor([0, 0]))
    assert torch.equal(found["attraction"], tensor(0.5 * (0.5 + 2), 0))  # no sample of class 1 attracts
    assert torch.equal(found["repulsion"], tensor(0, 0.5 * (0.5 + 2)))
    assert (
        gradient_components(probability[:0], features[:0], torch.zeros(0, dtype=torch.int64))["repulsion"].isnan().all()
    )


@pytest.mark.parametrize("slab", [1, 120, 2**24])
def test_gradient_components_are_the_parts_of_the_gradient(monkeypatch, slab):
    """Each part is the gradient of the loss of those samples alone; together they are the whole."""
    monkeypatch.setattr(gradients, "_SLAB", slab)
    features, target, weight = normal(40, 5, seed=1), classes_of(40, 6, 2), normal(6, 5, seed=3).requires_grad_()
    offset = normal(6, seed=4)
    logits = features @ weight.T + offset
    loss = (logits.exp().sum(1).log() - logits.gather(1, target[:, None])[:, 0]) / 40
    found = gradient_components(logits.softmax(1), features, target)
    assert not found["attraction"].requires_grad
    (whole,) = torch.autograd.grad(loss.sum(), weight, retain_graph=True)
    for c in range(6):
        (own,) = torch.autograd.grad(loss[target == c].sum(), weight, retain_graph=True)
        (others,) = torch.autograd.grad(loss[target != c].sum(), weight, retain_graph=True)
        assert_close(own[c] + others[c], whole[c])
        assert_close(found["attraction"][c], own[c].norm())
        assert_close(found["repulsion"][c], others[c].norm())


def test_forces_add_up_where_there_is_one_direction_only():
    """With positive features of one number no part cancels within itself: attraction - repulsion is -grad."""
    features, target = normal(30, 1, seed=1).abs(), classes_of(30, 4, 2)
    weight = normal(4, 1, seed=3).requires_grad_()
    logits = features @ weight.T
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), weight)
    found = gradient_components(logits.softmax(1), features, target)
    assert_close(found["attraction"] - found["repulsion"], -gradient[:, 0])
    assert_close(found["attraction"].sum(), found["repulsion"].sum())  # the gradient sums to zero over the classes


def test_gradient_components_do_not_depend_on_rotation_or_order():
    features, target, probability = normal(40, 5, seed=1), classes_of(40, 6, 2), normal(40, 6, seed=3).softmax(1)
    plain = gradient_components(probability, features, target)
    turned = gradient_components(probability, -3 * features @ torch.linalg.qr(normal(5, 5, seed=4)).Q, target)
    renamed = gradient_components(probability.flip(1), features, 5 - target)
    for key in plain:
        assert_close(turned[key], 3 * plain[key])
        assert_close(renamed[key].flip(0), plain[key])


def test_gradient_parts_by_hand():
    probability, features = torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    assert torch.equal(gradient_parts(probability, features, torch.tensor([0, 1])), tensor([0.5, 0.5], [2, 2]))
    found = gradient_parts(probability, features, torch.tensor([0, 0]))
    assert torch.equal(found, tensor([0.5 + 2, 0.5 + 2], [0, 0]))  # class 1 has no samples
    assert torch.equal(gradient_parts(probability, features, torch.tensor([0, 1]), [1]), tensor([0.5], [2]))
    moved = gradient_parts(probability, features, torch.tensor([0, 1]), origin=tensor([0, 1], [3, 0]))
    own, other = 0.25 * 1, 0.25 * 13**0.5
    assert_close(moved, tensor([own, other], [0.5 * 3, 0.5 * 5]))
    assert gradient_parts(probability[:0], features[:0], torch.zeros(0, dtype=torch.int64)).abs().sum() == 0


@pytest.mark.parametrize("slab", [1, 60, 2**24])
@pytest.mark.parametrize("shifted", [False, True])
def test_gradient_parts_are_the_published_sums(monkeypatch, slab, shifted):
    monkeypatch.setattr(gradients, "_SLAB", slab)
    probability, features, target = normal(40, 6, seed=3).softmax(1), normal(40, 5, seed=1), classes_of(40, 6, 2)
    origin = normal(6, 5, seed=4) if shifted else torch.zeros(6, 5, dtype=torch.float64)
    exact = torch.zeros(6, 6, dtype=torch.float64)
    for k in range(6):
        for c in range(6):
            total = torch.zeros(5, dtype=torch.float64)
            for i in range(40):
                if target[i] == k:
                    share = 1 - probability[i, c] if c == k else probability[i, c]
                    total = total + share * (features[i] - origin[c])
            exact[k, c] = total.square().sum().sqrt()
    given = origin if shifted else None
    assert_close(gradient_parts(probability, features, target, origin=given), exact)
    for some in ([4], range(2, 5), torch.tensor([5, 0], dtype=torch.int32)):
        columns = [int(index) for index in some]
        assert_close(gradient_parts(probability, features, target, some, origin=given), exact[:, columns])
    components = gradient_components(probability, features, target, origin=given)
    assert_close(40 * components["attraction"], exact.diagonal())


def test_parts_of_an_estimated_offset_are_the_gradient_of_its_loss():
    """The slope of logit c in w_c is x - c_c / 2: the offset is made of the weight too."""
    features, target, weight = normal(30, 5, seed=1), classes_of(30, 4, 2), normal(4, 5, seed=3).requires_grad_()
    loss = EstimatedOffsetLoss(4, 5, center_weight=0.0, uniform_weight=0.0)
    loss.center_loss.centers.copy_(normal(4, 5, seed=4))
    loss = loss.double().eval()
    centers = loss.center_loss.centers.detach().double()
    logits = features @ weight.T + loss.offsets(weight)
    probability = logits.softmax(1)
    parts = gradient_parts(probability, features, target, origin=centers / 2)
    components = gradient_components(probability, features, target, origin=centers / 2)
    rows = -logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    for k in range(4):
        (slope,) = torch.autograd.grad(rows[target == k].sum(), weight, retain_graph=True)
        assert_close(parts[k], slope.norm(dim=1))
        (others,) = torch.autograd.grad(rows[target != k].sum(), weight, retain_graph=True)
        assert_close(30 * components["repulsion"][k], others[k].norm())
        assert_close(30 * components["attraction"][k], slope[k].norm())
    (whole,) = torch.autograd.grad(loss(features @ weight.T, target, features=features, linear_weight=weight), weight)
    (summed,) = torch.autograd.grad(rows.mean(), weight)
    assert_close(whole, summed)


def test_parts_of_many_classes_and_one_column():
    """As many classes as species: one column needs neither all columns nor a vector for each sample and class."""
    probability = torch.full((300, 8142), 1 / 8142, dtype=torch.float64)
    features, target = normal(300, 16, seed=1), classes_of(300, 8142, 2)
    found = gradient_parts(probability, features, target, [8141])
    assert found.shape == (8142, 1)
    one = int(target[7])
    assert_close(found[one, 0], features[target == one].sum(0).norm() / 8142)
    assert int((found > 0).sum()) == len(target.unique())


TARGET = torch.tensor([0, 0, 1, 2, 2, 2])
ROWS, HALF = torch.ones(6, 2), torch.full((6, 3), 1 / 3)


@pytest.mark.parametrize("function", [gradient_components, gradient_parts])
@pytest.mark.parametrize(
    "arguments, name",
    [
        ((HALF * 4, ROWS, TARGET), "probability"),
        ((HALF * NAN, ROWS, TARGET), "probability .* nan"),
        ((HALF[:5], ROWS, TARGET), "probability"),
        ((HALF, ROWS[0], TARGET), "features"),
        ((HALF[:, :2], ROWS, TARGET), "target"),
    ],
)
def test_errors_name_the_argument(function, arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        function(*arguments)
    with pytest.raises(ValueError, match=r"origin must be \[C, d\] = \[3, 2\], got \[3, 1\]"):
        function(HALF, ROWS, TARGET, origin=torch.ones(3, 1))


@pytest.mark.parametrize(
    "classes, error",
    [([3], "in 0..2, got 3..3"), ([1, 1], "each class once"), (["a"], "class indices"), (2, "class indices, got 2")],
)
def test_wrong_columns_are_named(classes, error):
    with pytest.raises((ValueError, TypeError), match=f"classes must .*{error}"):
        gradient_parts(HALF, ROWS, TARGET, classes)
