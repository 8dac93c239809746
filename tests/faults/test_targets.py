"""Targets of every dtype: the same loss from each that holds the classes, and an error that names the target else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from benchmarks.registry import NAMED, OF_FEATURES, made, of_cosine
from lt_kernels import contrastive, functional, heads, losses, metrics, priors, regularizers

N, D = 6, 4
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
HOLDS = {torch.uint8: 256, torch.int8: 128}  # how many classes an index of that dtype can name


def counts(classes: int) -> list[int]:
    return [1 + 7 * c % 50 for c in range(classes)]


def logits(classes: int) -> Tensor:
    return normal(N, classes, seed=classes, dtype=torch.float32)


def by_name(name: str, target: Tensor, classes: int) -> Tensor:
    """A named loss of logits or cosines, with its defaults."""
    input = logits(classes).tanh() if of_cosine(name) else logits(classes)
    return made(name, counts(classes))(input, target)


# A number from a target and the number of classes, of everything that takes class indices.
TAKES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "offset_cross_entropy": lambda y, c: functional.offset_cross_entropy(logits(c), y, label_smoothing=0.1),
    "linear_cross_entropy": lambda y, c: functional.linear_cross_entropy(*vectors(c), y),
    "cosine": lambda y, c: functional.cosine_margin_cross_entropy(*vectors(c), y, margin=functional.ArcFace()),
    "mixed": lambda y, c: functional.offset_cross_entropy(logits(c), functional.MixedTarget(y, y.flip(0), 0.3)),
    "lade_regularizer": lambda y, c: functional.lade_regularizer(logits(c), y, torch.tensor(counts(c))),
    "balanced_contrastive": lambda y, c: contrastive.balanced_contrastive(*vectors(c), y),
    **{name: functools.partial(by_name, name) for name in NAMED if name not in OF_FEATURES},
    "ARBLoss of the batch": lambda y, c: losses.ARBLoss(counts="batch")(logits(c), y),
    "NCLLoss": lambda y, c: losses.NCLLoss(counts(c), hard_categories=1)(logits(c)[None], y),
    "EstimatedOffsetLoss": lambda y, c: estimated(c)(normal(N, D, seed=1, dtype=torch.float32), y),
    "GML": lambda y, c: gml(c)(normal(N, D, seed=1, dtype=torch.float32), y),
    "LADERegularizer": lambda y, c: regularizers.LADERegularizer(counts(c))(logits(c), y),
    "CenterLoss": lambda y, c: regularizers.CenterLoss(c, D)(normal(N, D, seed=1, dtype=torch.float32), y),
    "class_counts_of": lambda y, c: priors.class_counts_of(y, c).double(),
    "per_class_accuracy": lambda y, c: metrics.per_class_accuracy(y.flip(0), y, c).nan_to_num(-1),
}


def vectors(classes: int) -> tuple[Tensor, Tensor]:
    return normal(N, D, seed=1, dtype=torch.float32), normal(classes, D, seed=2, dtype=torch.float32)


def estimated(classes: int) -> heads.LinearHead:
    torch.manual_seed(3)
    return heads.LinearHead(D, classes, losses.EstimatedOffsetLoss(classes, D), bias=False)


def gml(classes: int) -> heads.GMLHead:
    torch.manual_seed(3)
    return heads.GMLHead(D, classes, losses.GMLLoss(losses.CrossEntropyLoss(), counts(classes)), queue=2 * classes)


@pytest.mark.parametrize("classes", [1, 2, 100, 128, 129, 255, 256, 257, 300])
@pytest.mark.parametrize("name", TAKES)
def test_indices_of_any_integers(name: str, classes: int) -> None:
    for dtype in INTEGERS:
        target = classes_of(N, min(classes, HOLDS.get(dtype, classes)), seed=4)
        if classes > 1:
            target[0] = min(classes, HOLDS.get(dtype, classes)) - 1
        assert_close(TAKES[name](target.to(dtype), classes), TAKES[name](target, classes), name=str(dtype))


WRONG: list[tuple[str, Any]] = [
    ("bool", torch.zeros(N, dtype=torch.bool)),
    ("uint16", torch.zeros(N, dtype=torch.uint16)),
    ("complex", torch.zeros(N, dtype=torch.complex64)),
    ("list", [0] * N),
    ("none", 7),
]


@pytest.mark.parametrize("kind, target", WRONG, ids=[kind for kind, _ in WRONG])
@pytest.mark.parametrize("name", sorted(set(TAKES) - {"mixed", "per_class_accuracy"}))
def test_a_target_of_another_kind_is_named(name: str, kind: str, target: Any) -> None:
    if (name, kind) == ("class_counts_of", "list"):
        pytest.skip("it counts any labels")
    with pytest.raises((TypeError, ValueError), match="target"):
        TAKES[name](target, 5)


def test_batch_counts_of_probabilities() -> None:
    """The batch's soft counts are those of its labels: with p = (1/4, 3/4) and equal logits the entropy of p."""
    loss = losses.ARBLoss(counts="batch")
    share = torch.tensor([[0.25, 0.75]])
    assert float(loss(torch.zeros(1, 2), share)) == pytest.approx(0.562335, abs=1e-6)
    rows = normal(5, 3, seed=5).softmax(1)
    z = normal(5, 3, seed=6).requires_grad_()
    exact = torch.nn.functional.cross_entropy(z + rows.sum(0).log(), rows)
    assert_close(loss(z, rows), exact)
    assert_close(torch.autograd.grad(loss(z, rows), z)[0], torch.autograd.grad(exact, z)[0])
    one_hot = torch.eye(3, dtype=torch.float64)[[0, 2, 2, 0, 0]]
    assert_close(loss(z, one_hot), loss(z, torch.tensor([0, 2, 2, 0, 0])))
    with pytest.raises(ValueError, match="target must have 3 classes where it holds probabilities"):
        loss(z, rows[:, :2])
    places, dense = normal(2, 3, 4, seed=7), normal(2, 3, 4, seed=8).softmax(1)
    assert_close(loss(places, dense), loss(places.movedim(1, 2).reshape(8, 3), dense.movedim(1, 2).reshape(8, 3)))
    assert_close(loss(z[0], rows[0]), loss(z[:1], rows[:1]))


@pytest.mark.parametrize("kind", [losses.CrossEntropyLoss, lambda **o: losses.ARBLoss(counts="batch", **o)])
def test_an_ignored_index_of_narrow_integers(kind: Callable[..., losses.Loss]) -> None:
    """As in pictures: 255 of uint8 is nobody's class, and -100 is no number of uint8."""
    loss, target = kind(ignore_index=255), torch.tensor([0, 255, 2, 1, 255, 2])
    z = normal(6, 3, seed=9)
    assert_close(loss(z, target.to(torch.uint8)), loss(z[target != 255], target[target != 255]))
    wide = losses.ARBLoss(counts="batch")
    target = torch.tensor([156, 0, 2, 1, 156, 2])  # -100 modulo 256
    assert_close(wide(normal(6, 200, seed=9), target.to(torch.uint8)), wide(normal(6, 200, seed=9), target))
