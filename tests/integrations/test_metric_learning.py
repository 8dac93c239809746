"""Heads made of pytorch-metric-learning's losses: value and gradients are those of the library to 1e-6."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import classes_of, normal

pytest.importorskip("pytorch_metric_learning", reason="the extra [integrations] is not installed")

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from lt_kernels.integrations.metric_learning import from_pml, miner_weights

# scipy's binom of a torch tensor, in the library's constructors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

CLASSES, SIZE, ROWS = 7, 12, 20
LABELS = classes_of(ROWS, CLASSES, seed=3)
MADE = {
    "arcface": lambda **more: losses.ArcFaceLoss(CLASSES, SIZE, margin=28.6, scale=16, **more),
    "arcface-wide": lambda **more: losses.ArcFaceLoss(CLASSES, SIZE, margin=120, scale=8, **more),
    "cosface": lambda **more: losses.CosFaceLoss(CLASSES, SIZE, margin=0.3, scale=12, **more),
    "normalized": lambda **more: losses.NormalizedSoftmaxLoss(CLASSES, SIZE, temperature=0.07, **more),
    "proxy-nca": lambda **more: losses.ProxyNCALoss(CLASSES, SIZE, softmax_scale=3, **more),
    "sphereface": lambda **more: losses.SphereFaceLoss(CLASSES, SIZE, margin=3, scale=2, **more),
    "sub-centers": lambda **more: losses.SubCenterArcFaceLoss(
        num_classes=CLASSES, embedding_size=SIZE, margin=20, scale=10, sub_centers=3, **more
    ),
}


@pytest.fixture(params=MADE)
def theirs(request: pytest.FixtureRequest) -> torch.nn.Module:
    return MADE[request.param]().double()


def weight_of(theirs: torch.nn.Module) -> torch.Tensor:
    return theirs.proxies if isinstance(theirs, losses.ProxyNCALoss) else theirs.W


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_loss_and_gradients_are_the_librarys(theirs: torch.nn.Module):
    features = normal(ROWS, SIZE, seed=1, spread=1.5).requires_grad_()
    head = from_pml(theirs)
    assert head.weight.data_ptr() != weight_of(theirs).data_ptr()
    value, expected = head(features, LABELS), theirs(features, LABELS)
    close(value, expected)
    found = torch.autograd.grad(value, [features, head.weight])
    for one, other in zip(found, torch.autograd.grad(expected, [features, weight_of(theirs)]), strict=True):
        close(one, other if one.shape == other.shape else other.T)


def test_the_scaled_cosines_are_the_librarys_logits(theirs: torch.nn.Module):
    features = normal(ROWS, SIZE, seed=2)
    scaled = from_pml(theirs).scaled(features)
    if isinstance(theirs, losses.ProxyNCALoss):  # whose logits are distances, the same for the softmax
        close(scaled.softmax(1), (-theirs.softmax_scale * theirs.get_logits(features)).softmax(1))
    else:
        close(scaled, theirs.get_logits(features))


def test_a_miners_weights_are_the_librarys(theirs: torch.nn.Module):
    features = normal(ROWS, SIZE, seed=4)
    for miner in (miners.BatchHardMiner(), miners.TripletMarginMiner(margin=0.3), miners.PairMarginMiner()):
        tuples = miner(features, LABELS)
        head = from_pml(theirs, reduction="none")
        weights = miner_weights(tuples, LABELS, torch.float64, anchors=isinstance(theirs, losses.ProxyNCALoss))
        assert weights.shape == (ROWS,)
        close((weights * head(features, LABELS)).mean(), theirs(features, LABELS, tuples))
    assert miner_weights(None, LABELS).tolist() == [1.0] * ROWS


def test_reducers():
    features = normal(ROWS, SIZE, seed=5).float()
    for reducer in (reducers.MeanReducer(), reducers.SumReducer()):
        theirs = MADE["arcface"](reducer=reducer)
        torch.testing.assert_close(from_pml(theirs)(features, LABELS), theirs(features, LABELS), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"reducer must be MeanReducer or SumReducer, .* got AvgNonZeroReducer"):
        from_pml(MADE["arcface"](reducer=reducers.AvgNonZeroReducer()))


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: losses.LargeMarginSoftmaxLoss(CLASSES, SIZE), TypeError, "one of ArcFaceLoss, .* got LargeMarginSoftmax"),
    (lambda: losses.TripletMarginLoss(), TypeError, "loss must be one of ArcFaceLoss, .*SubCenter.* got TripletMargin"),
    (lambda: torch.nn.CrossEntropyLoss(), TypeError, "loss must be one of .* got CrossEntropyLoss"),
    (lambda: MADE["arcface"](embedding_regularizer=regularizers.LpRegularizer()), ValueError,
     "embedding_regularizer must be None"),
    (lambda: MADE["cosface"](weight_regularizer=regularizers.RegularFaceRegularizer()), ValueError,
     "weight_regularizer must be None"),
    (lambda: MADE["normalized"](distance=distances.DotProductSimilarity(normalize_embeddings=False)), ValueError,
     "distance must be CosineSimilarity, of normalised embeddings .*normalize_embeddings=False"),
    (lambda: MADE["proxy-nca"](distance=distances.LpDistance(power=1)), ValueError, "power=2, got .*power=1"),
])  # fmt: skip
def test_what_has_no_counterpart_is_named(make, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        from_pml(make())


def test_a_subclass_may_compute_something_else():
    class ArcFaceLoss(losses.ArcFaceLoss):
        pass

    with pytest.raises(TypeError, match=r"pytorch_metric_learning\.losses, got ArcFaceLoss"):
        from_pml(ArcFaceLoss(CLASSES, SIZE))


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(ImportError, match=r"pip install 'lt-kernels\[integrations\]'"):
        from_pml(None)
