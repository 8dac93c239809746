"""Classifiers of scikit-learn with the losses and heads: probabilities, counts, searches, copies."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lt_kernels import heads, losses

skorch = pytest.importorskip("skorch", reason="skorch is not installed")
sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone  # noqa: E402  (after the check that it is there)
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from lt_kernels.integrations.skorch import LongTailClassifier, probabilities  # noqa: E402

RANDOM = np.random.default_rng(0)
Y = np.repeat([0, 1, 2], [60, 20, 10])
X = (RANDOM.normal(size=(90, 4)) + 1.2 * np.eye(3, 4)[Y]).astype(np.float32)
QUIET: dict[str, Any] = {"max_epochs": 3, "lr": 0.1, "verbose": 0, "train_split": None}


class Net(nn.Module):
    def __init__(self, out: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, out)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows)


class Cosines(Net):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(
            nn.functional.normalize(rows, dim=1), nn.functional.normalize(self.layer.weight, dim=1)
        )


def test_skorch_itself_gives_logits_as_probabilities() -> None:
    """Why there is a class of our own; where this fails, skorch has learned it."""
    net = skorch.NeuralNetClassifier(Net, criterion=losses.BalancedSoftmaxLoss([60, 20, 10]), **QUIET).fit(X, Y)
    assert (net.predict_proba(X) < 0).any()
    right = net.set_params(predict_nonlinearity=probabilities).predict_proba(X)
    assert_close(torch.tensor(right), net.module_(torch.tensor(X)).softmax(1).detach())


CASES: dict[str, tuple[dict[str, Any], float]] = {
    "logits": ({"module": Net, "criterion__tau": 1.5, "criterion": losses.LogitAdjustmentLoss}, 1.0),
    "cosines": ({"module": Cosines, "criterion": losses.LDAMLoss, "criterion__scale": 7.0}, 7.0),
    "an instance": ({"module": Cosines, "criterion": losses.CosFaceLoss(0.1, 5.0)}, 5.0),
    "cross-entropy": ({"module": Net, "criterion": nn.CrossEntropyLoss}, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_probabilities_are_the_softmax_of_the_scaled_output(name: str) -> None:
    options, scale = CASES[name]
    net = LongTailClassifier(**options, **QUIET).fit(X, Y)
    assert_close(torch.tensor(net.predict_proba(X)), (scale * net.forward(X)).softmax(1))
    assert_close(net.predict_proba(X).sum(1), np.ones(90, dtype=np.float32))
    assert (net.predict(X) == net.forward(X).argmax(1).numpy()).all()


HEADS: dict[str, tuple[dict[str, Any], float]] = {
    "linear": ({"criterion": heads.LinearHead, "criterion__loss": losses.BalancedSoftmaxLoss}, 1.0),
    "cosine": ({"criterion": heads.CosineHead, "criterion__loss": partial(losses.LDAMLoss, scale=9.0)}, 9.0),
    "scaled": (
        {"criterion": heads.CosineHead, "criterion__loss": losses.ARBLoss, "criterion__scale": 11.0},
        11.0,
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_trained_with_the_features(name: str) -> None:
    options, scale = HEADS[name]
    net = LongTailClassifier(Net, module__out=6, criterion__in_features=6, **options, **QUIET).fit(X, Y)
    start = type(net.criterion_)(6, 3, net.criterion_.loss)
    assert net.criterion_.num_classes == 3
    assert net.criterion_.weight.shape == start.weight.shape
    assert_close(torch.tensor(net.predict_proba(X)), (scale * net.criterion_(net.forward(X))).softmax(1).detach())
    assert net.history[-1, "train_loss"] < net.history[0, "train_loss"]


def test_the_features_norms_belong_to_the_logits_of_sphereface() -> None:
    options: dict[str, Any] = {"criterion__in_features": 6, "criterion__loss": losses.SphereFaceLoss}
    net = LongTailClassifier(Net, module__out=6, criterion=heads.CosineHead, **options, **QUIET).fit(X, Y)
    features = net.forward(X)
    logits = features.norm(dim=1, keepdim=True) * net.criterion_(features) * net.criterion_.loss.scale
    assert_close(torch.tensor(net.predict_proba(X)), logits.softmax(1).detach())


def test_counts_are_those_of_the_labels() -> None:
    net = LongTailClassifier(Net, **QUIET).fit(X, Y)
    assert net.class_counts_.tolist() == [60, 20, 10]
    assert_close(net.criterion_.offset.exp(), torch.tensor([60, 20, 10]).double() / 90)
    given = LongTailClassifier(Net, criterion__class_counts=[1, 1, 1], **QUIET).fit(X, Y)
    assert_close(given.criterion_.offset.exp(), torch.full((3,), 1 / 3, dtype=torch.float64))
    more = LongTailClassifier(Net, module__out=4, classes=range(4), **QUIET).fit(X, Y)  # the last is in no fold
    assert more.class_counts_.tolist() == [60, 20, 10, 0]
    assert more.predict_proba(X).shape == (90, 4)
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    assert LongTailClassifier(Net, **QUIET).fit(dataset, None).class_counts_.tolist() == [60, 20, 10]


def test_the_loss_is_that_of_the_package() -> None:
    net = LongTailClassifier(Net, **{**QUIET, "max_epochs": 1, "batch_size": 90}).fit(X, Y)
    expected = losses.BalancedSoftmaxLoss([60, 20, 10])(Net()(torch.tensor(X)), torch.tensor(Y))
    assert net.history[0, "train_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_settings_change_after_training() -> None:
    """skorch makes the criterion again at once; the counts are still known."""
    net = LongTailClassifier(Net, criterion=losses.LogitAdjustmentLoss, **QUIET).fit(X, Y)
    before = net.criterion_.offset.clone()
    net.set_params(criterion__tau=2.0)
    assert_close(net.criterion_.offset, 2 * before)
    net.partial_fit(X, Y)
    with pytest.raises(ValueError, match=r"criterion__class_counts must be given where initialize\(\) comes before"):
        LongTailClassifier(Net, **QUIET).initialize()
    assert LongTailClassifier(Net, criterion__class_counts=[3, 2, 1], **QUIET).initialize().initialized_


def test_clone_and_pickle() -> None:
    net = LongTailClassifier(Net, criterion=losses.LogitAdjustmentLoss, criterion__tau=0.5, **QUIET).fit(X, Y)
    assert np.array_equal(pickle.loads(pickle.dumps(net)).predict_proba(X), net.predict_proba(X))
    other = clone(net)
    assert not hasattr(other, "class_counts_")
    assert np.array_equal(other.fit(X, Y).predict_proba(X), net.predict_proba(X))


def test_searches_pipelines_and_scores() -> None:
    long = {**QUIET, "max_epochs": 30, "iterator_train__shuffle": True}
    net = LongTailClassifier(Net, criterion=losses.LogitAdjustmentLoss, **long)
    torch.manual_seed(0)
    pipe = make_pipeline(StandardScaler(), net)
    search = GridSearchCV(
        pipe, {"longtailclassifier__criterion__tau": [0.0, 1.0]}, scoring="balanced_accuracy", cv=3, error_score="raise"
    ).fit(X, Y)
    assert search.best_params_["longtailclassifier__criterion__tau"] == 1.0
    assert search.cv_results_["mean_test_score"][1] > search.cv_results_["mean_test_score"][0]
    scores = cross_val_score(net, X, Y, scoring="neg_log_loss", cv=3, error_score="raise")
    assert np.isfinite(scores).all()


def test_labels_that_are_no_classes_are_named() -> None:
    with pytest.raises(TypeError, match="target must hold class indices, got <U"):
        LongTailClassifier(Net, **QUIET).fit(X, np.array(["cat"] * 90))
