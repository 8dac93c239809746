"""Post-hoc corrections against Bayes' rule, the papers' formulas and literal numbers."""

from __future__ import annotations

import pytest
import torch
from helpers import counts_of, normal
from tolerances import assert_close

from lt_kernels import losses
from lt_kernels.heads import LinearHead
from lt_kernels.posthoc import (
    LearnableWeightScaling,
    empirical_offset,
    logit_adjustment,
    nearest_class_mean,
    pc_softmax,
    rescale_by_count,
    tau_normalize,
)

COUNTS = [60, 30, 10]


def test_logit_adjustment_by_hand():
    logits = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    prior = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    assert_close(logit_adjustment(logits, COUNTS, tau=0.7), logits - 0.7 * prior.log())
    assert_close(logit_adjustment(logits, COUNTS), logits - prior.log())


def test_adjustment_undoes_the_prior_of_bayes_rule():
    """p(y | x) is proportional to p(x | y) p(y): without the prior, the likelihoods are left."""
    likelihood = normal(5, 3, seed=0).exp()
    prior = torch.tensor(COUNTS, dtype=torch.float64) / 100
    posterior = likelihood * prior / (likelihood * prior).sum(1, keepdim=True)
    balanced = likelihood / likelihood.sum(1, keepdim=True)
    assert_close(logit_adjustment(posterior.log(), COUNTS).softmax(1), balanced)
    assert_close(pc_softmax(posterior.log(), COUNTS), balanced)
    target = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    moved = likelihood * target / (likelihood * target).sum(1, keepdim=True)
    assert_close(pc_softmax(posterior.log(), COUNTS, target), moved)
    assert_close(pc_softmax(posterior.log(), COUNTS, 40 * target), moved)  # in any unit


def test_same_prior_before_and_after_is_the_softmax():
    logits, counts = normal(4, 9, seed=1), counts_of(9, seed=2)
    assert_close(pc_softmax(logits, counts, counts), logits.softmax(1))
    assert_close(pc_softmax(logits, [7] * 9), logits.softmax(1))


def test_a_class_that_the_target_does_not_have():
    found = pc_softmax(normal(4, 3, seed=3), COUNTS, [1, 0, 3])
    assert (found[:, 1] == 0).all()
    assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_leading_shape_are_kept(dtype):
    logits, counts = normal(2, 4, 6, seed=4, dtype=dtype), counts_of(6, seed=5, largest=1_000_000)
    for function in (pc_softmax, logit_adjustment):
        found = function(logits, counts)
        assert found.dtype == dtype
        assert_close(found, function(logits.double(), counts), dtype)
    assert_close(pc_softmax(logits[0, 0], counts), pc_softmax(logits, counts)[0, 0])


def test_adjusted_logits_let_gradients_through():
    logits = normal(3, 3, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: pc_softmax(z, COUNTS, [1, 2, 3]), logits)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda z: logit_adjustment(z, [1, 0, 2]), "class_counts"),
        (lambda z: logit_adjustment(z, [1, 2]), "class_counts"),
        (lambda z: logit_adjustment(z, COUNTS, tau=float("nan")), "tau"),
        (lambda z: logit_adjustment(z.long(), COUNTS), "logits"),
        (lambda z: pc_softmax(z, [1, 0, 2]), "source_counts"),
        (lambda z: pc_softmax(z, [[1, 2, 3]]), "source_counts"),
        (lambda z: pc_softmax(z, [1, 2]), "source_counts"),
        (lambda z: pc_softmax(z, COUNTS, [1, -1, 2]), "target_prior"),
        (lambda z: pc_softmax(z, COUNTS, [1, 2]), "target_prior"),
        (lambda z: pc_softmax(z, COUNTS, [0, 0, 0]), "target_prior"),
        (lambda z: tau_normalize(z, -1.0), "tau"),
        (lambda z: tau_normalize(z[0]), "linear_weight"),
        (lambda z: tau_normalize(z * torch.tensor([[1.0], [0.0]])), "linear_weight .* row 1"),
        (lambda z: tau_normalize(z / 0), "linear_weight .* row 0"),
    ],
)
def test_the_bad_argument_is_named(call, name):
    with pytest.raises((ValueError, TypeError), match=name):
        call(torch.ones(2, 3))


def test_tau_normalize_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.25]], dtype=torch.float64)
    assert_close(tau_normalize(weight, 1.0), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64))
    assert torch.equal(tau_normalize(weight, 0.0), weight)
    root = torch.tensor([[3.0, 4.0], [0.0, 0.5 * 5**0.5]], dtype=torch.float64) / 5**0.5
    assert_close(tau_normalize(weight, 0.5), root)


def test_tau_normalize_leaves_norms_of_power_one_minus_tau():
    weight = normal(7, 5, seed=8, dtype=torch.float32)
    assert tau_normalize(weight, 0.3).dtype == torch.float32
    assert_close(tau_normalize(weight, 0.3).norm(dim=1), weight.norm(dim=1) ** 0.7)


def test_rescale_by_count_by_hand():
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.0], [0.0, 4.0], [30.0, 0.0]], dtype=torch.float64)
    assert_close(rescale_by_count(weight, [100, 25, 1], gamma=0.5), expected)
    assert torch.equal(rescale_by_count(weight, [100, 25, 1], gamma=0.0), weight)
    assert rescale_by_count(weight.float(), [100, 25, 1]).dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_empirical_offset_by_its_formula(bias):
    """w.x - m.w / 2 with the means of the features, at once and batch by batch; the head itself is left alone."""
    head = LinearHead(4, 3, losses.CrossEntropyLoss(), bias=bias).double()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    features, target = normal(40, 4, seed=10), torch.arange(40) % 3
    weight = head.weight.detach()
    mean = torch.stack([features[target == c].mean(0) for c in range(3)])
    expected = features @ weight.T - (mean * weight).sum(1) / 2
    made = empirical_offset(head, features, target)
    assert_close(made(features), expected)
    batches = zip(features.split(7), target.split(7), strict=True)
    assert_close(empirical_offset(head, batches)(features), expected)
    assert made.weight.data_ptr() != head.weight.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_empirical_offset_is_the_classifier_of_a_balanced_world():
    """Of classes with the identity as covariance, and their means as class weights: Bayes' rule with equal priors."""
    mean, target = normal(3, 4, seed=11), torch.arange(3).repeat_interleave(torch.tensor([400, 40, 4]))
    head = LinearHead(4, 3, losses.CrossEntropyLoss()).double()
    with torch.no_grad():
        head.weight.copy_(mean)
    points = normal(20, 4, seed=12)
    likelihood = torch.exp(-0.5 * (points[:, None] - mean).square().sum(2))
    logits = empirical_offset(head, mean[target], target)(points)
    assert_close(logits.softmax(1), likelihood / likelihood.sum(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empirical_offset_keeps_the_dtype_of_the_head(dtype):
    head = LinearHead(4, 3, losses.CrossEntropyLoss()).to(dtype)
    made = empirical_offset(head, normal(9, 4, seed=13, dtype=torch.float32), torch.arange(9) % 3)
    assert made.weight.dtype == made.bias.dtype == dtype
    assert not made.bias.isnan().any()


@pytest.mark.parametrize(
    "change, name",
    [
        ({"target": torch.tensor([0, 1, 1])}, "target must have a sample of every class, got none of 2"),
        ({"target": torch.tensor([0, 1, 3])}, "target holds 3"),
        ({"target": torch.tensor([0, 1])}, "target"),
        ({"target": None}, "target must be given"),
        ({"features": torch.ones(3, 5)}, r"features must be \[N, 4\]"),
        ({"features": torch.ones(3, 4).long()}, "features"),
        ({"features": [(torch.ones(3, 4), torch.arange(3))]}, "target must be None"),
        ({"head": torch.nn.Linear(4, 3)}, "head must be a LinearHead"),
        ({"head": LinearHead(4, 3, losses.EstimatedOffsetLoss(3, 4), bias=False)}, "head must have a loss without"),
    ],
)
def test_empirical_offset_names_what_is_wrong(change, name):
    good = {
        "head": LinearHead(4, 3, losses.CrossEntropyLoss()),
        "features": torch.ones(3, 4),
        "target": torch.arange(3),
    }
    with pytest.raises((ValueError, TypeError, IndexError), match=name):
        empirical_offset(**{**good, **change})


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_class_mean_is_that_of_scikit_learn(distance):
    """Its nearest neighbour among the class means, at once and batch by batch, of classes that overlap."""
    neighbors = pytest.importorskip("sklearn.neighbors", reason="the extra [train] is not installed")
    target = torch.arange(5).repeat_interleave(torch.tensor([80, 40, 20, 4, 1]))
    features = normal(len(target), 6, seed=20) + 0.5 * normal(5, 6, seed=21)[target] + 1.0
    means = torch.stack([features[target == c].mean(0) for c in range(5)])
    model = neighbors.KNeighborsClassifier(1, metric=distance).fit(means.numpy(), range(5))
    points = normal(300, 6, seed=22) + 1.0
    expected = torch.from_numpy(model.predict(points.numpy()))
    assert len(expected.unique()) == 5
    made = nearest_class_mean(features, target, num_classes=5, distance=distance)
    assert torch.equal(made(points).argmax(1), expected)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    batches = zip(features[order].split(7), target[order].split(7), strict=True)
    assert_close(nearest_class_mean(batches, num_classes=5, distance=distance)(points), made(points))


def test_the_nearest_mean_of_features_that_share_a_large_part():
    target = torch.arange(20).repeat(50)
    features = (normal(1000, 16, seed=30) + 0.5 * normal(20, 16, seed=31)[target] + 1000.0).float()
    means = torch.stack([features[target == c].double().mean(0) for c in range(20)])
    expected = torch.cdist(features.double(), means).argmin(1)
    found = nearest_class_mean(features, target, num_classes=20, distance="euclidean")(features).argmax(1)
    assert (found == expected).double().mean() > 0.99


def test_outputs_of_the_nearest_class_mean():
    """Cosines, and half of |x - m|^2 - |x - m_c|^2 with m the mean of the m_c, in the features' dtype."""
    features, target = torch.tensor([[1.0, 1.0], [3.0, 1.0], [0.0, -2.0]]), torch.tensor([0, 0, 1])
    points = torch.tensor([[3.0, 4.0]])
    found = nearest_class_mean(features, target, num_classes=2, distance="euclidean")(points)
    assert found.tolist() == [[(24.25 - 10) / 2, (24.25 - 45) / 2]]
    cosines = nearest_class_mean(features, target, num_classes=2)(points)
    assert_close(cosines, torch.tensor([[10 / 5 / 5**0.5, -0.8]]))
    assert nearest_class_mean(features.bfloat16(), target, num_classes=2)(points.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change, name",
    [
        ({"target": torch.tensor([0, 1, 1])}, "target must have a sample of every class, got none of 2"),
        ({"target": torch.tensor([0, 1, 3])}, "target holds 3"),
        ({"target": None}, "target must be given"),
        ({"features": [], "target": None}, "features must have at least one pair"),
        ({"features": None, "target": None}, "features must be a tensor or an iterable of pairs .*, got NoneType"),
        ({"features": [1, 2], "target": None}, "features must be .*, got a int in it"),
        ({"features": [(torch.ones(2, 3),)], "target": None}, "features must be .*, got a tuple of 1 in it"),
        ({"features": torch.ones(3)}, r"features must be \[N, d\], got \[3\]"),
        ({"features": torch.ones(3, 4).long()}, "features"),
        ({"features": [(torch.ones(3, 4), torch.arange(3)), (torch.ones(3, 5), torch.arange(3))], "target": None}, "4"),
        ({"num_classes": 0}, "num_classes"),
        ({"distance": "manhattan"}, "distance must be one of"),
    ],
)
def test_nearest_class_mean_names_what_is_wrong(change, name):
    good = {"features": torch.ones(3, 4), "target": torch.arange(3), "num_classes": 3}
    with pytest.raises((ValueError, TypeError, IndexError), match=name):
        nearest_class_mean(**{**good, **change})


@pytest.mark.parametrize("scaled", ["logits", "weight"])
@pytest.mark.parametrize("bias", [True, False])
def test_learned_scales_before_the_logits(scaled, bias):
    head = LinearHead(4, 3, losses.CrossEntropyLoss(), bias=bias).double()
    features, target = normal(6, 4, seed=9), torch.tensor([0, 2, 1, 1, 0, 2])
    module = LearnableWeightScaling(head, scaled=scaled).double()
    assert_close(module(features), head(features))
    scale = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        module.scale.copy_(scale)
    leaf = scale.clone().requires_grad_()
    constant = 0.0 if head.bias is None else head.bias.detach()
    products = features @ head.weight.detach().T
    logits = leaf * (products + constant) if scaled == "logits" else leaf * products + constant
    assert_close(module(features), logits)
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = -probability[torch.arange(6), target].log().mean()
    loss = module(features, target)
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(module.scale.grad, leaf.grad)


def test_scales_keep_an_estimated_offset_in_prediction():
    loss = losses.EstimatedOffsetLoss(3, 4)
    head = LinearHead(4, 3, loss, bias=False).double()
    loss.center_loss.centers.copy_(normal(3, 4, seed=11))
    features = normal(6, 4, seed=12)
    assert_close(LearnableWeightScaling(head)(features), head(features))


def test_scales_with_another_loss():
    head = LinearHead(4, 3, losses.CrossEntropyLoss()).double()
    features, target = normal(6, 4, seed=10), torch.tensor([0, 2, 1, 1, 0, 2])
    module = LearnableWeightScaling(head, losses.BalancedSoftmaxLoss(COUNTS))
    assert_close(module(features, target), losses.BalancedSoftmaxLoss(COUNTS)(head(features), target))
    assert_close(module(features[:, None], target[:, None]), module(features, target))


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: LearnableWeightScaling(torch.nn.Linear(4, 3)), "head"),
        (lambda: LearnableWeightScaling(LinearHead(4, 3, losses.CrossEntropyLoss()), scaled="all"), "scaled"),
        (lambda: LearnableWeightScaling(LinearHead(4, 3, losses.CrossEntropyLoss()), losses.CosFaceLoss()), "loss"),
        (lambda: LearnableWeightScaling(LinearHead(4, 3, losses.CrossEntropyLoss()), "ce"), "loss"),
        (lambda: rescale_by_count(torch.ones(3, 2), [1, 2]), "linear_weight"),
        (lambda: rescale_by_count(torch.ones(3, 2), [1, 0, 2]), "class_counts"),
        (lambda: rescale_by_count(torch.ones(3, 2), COUNTS, gamma=-0.1), "gamma"),
    ],
)
def test_the_bad_argument_of_a_correction_is_named(call, name):
    with pytest.raises((ValueError, TypeError), match=name):
        call()
