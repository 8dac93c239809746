"""Balanced contrastive learning: the term, the loss and its head against loops over anchors and keys in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_same, classes_of, counts_of, gradients, normal
from published_views import balanced_contrastive as dense
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import losses, memory_budget
from lt_kernels.contrastive import balanced_contrastive

pytestmark = pytest.mark.usefixtures("kernels")

N, C, D = 9, 5, 4
COUNTS = counts_of(C, 801)
TARGET = torch.tensor([0, 0, 0, 1, 1, 2, 0, 1, 3])  # class 2 and 3 have one sample, class 4 only its prototype


def leaves(views: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> dict[str, Tensor]:
    """Views and prototypes of norms that are not 1."""
    return {
        "views": normal(views * N, D, seed=802, spread=spread, dtype=dtype),
        "prototypes": normal(C, D, seed=803, spread=3.0, dtype=dtype),
    }


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.3])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_term(views: int, temperature: float, reduction: str) -> None:
    reduced = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]
    options: Any = {"temperature": temperature, "reduction": reduction}
    assert_same(
        lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET, **options),
        lambda views, prototypes: reduced(dense(views, prototypes, TARGET, temperature)),
        leaves(views),
    )


def test_term_in_slabs_of_a_budget() -> None:
    with memory_budget(700):
        assert_same(
            lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET),
            lambda views, prototypes: dense(views, prototypes, TARGET, 0.1).mean(),
            leaves(2),
        )


def test_gradcheck() -> None:
    given = [leaf.requires_grad_() for leaf in leaves(2).values()]
    assert torch.autograd.gradcheck(
        lambda v, u: balanced_contrastive(v, u, TARGET, reduction="none"), given, fast_mode=True
    )


def test_no_second_derivative() -> None:
    views = leaves(2)["views"].requires_grad_()
    (slope,) = torch.autograd.grad(
        balanced_contrastive(views, leaves(2)["prototypes"], TARGET), views, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope.sum().backward()


def test_literal() -> None:
    """One view of class 0 with cosines 1 and 0: the prototypes' divisors are 2 - 1 and 1."""
    loss = balanced_contrastive(torch.tensor([[2.0, 0.0]]), torch.eye(2), torch.tensor([0]), temperature=0.5)
    assert_close(loss, torch.tensor(math.log1p(math.exp(-2))))


@pytest.mark.parametrize("classes", [1, 3])
def test_one_class_and_identical_rows(classes: int) -> None:
    """Where all keys are one point the loss is log C, and nothing pulls: one class has no other to be compared with."""
    given = {"views": torch.ones(6, D).double(), "prototypes": torch.ones(classes, D).double()}
    target = torch.zeros(3, dtype=torch.int64)
    found = gradients(lambda views, prototypes: balanced_contrastive(views, prototypes, target), given)
    assert_close(found["value"], torch.tensor(math.log(classes), dtype=torch.float64))
    assert found["views"].abs().max() < 1e-14
    assert found["prototypes"].abs().max() < 1e-14


def test_order_of_the_batch_does_not_matter() -> None:
    given, order = leaves(2), torch.randperm(N)
    both = torch.cat((order, order + N))
    plain = balanced_contrastive(**given, target=TARGET, reduction="none")
    mixed = balanced_contrastive(given["views"][both], given["prototypes"], TARGET[order], reduction="none")
    assert_close(mixed, plain[both])


def test_more_of_another_class_weigh_no_more() -> None:
    """A class whose keys are all one point counts once, however many samples of it a batch has."""
    prototypes, anchor = normal(C, D, seed=804), normal(1, D, seed=805)
    values = []
    for copies in (1, 2, 7):
        views = torch.cat((anchor, prototypes[3].repeat(copies, 1)))
        target = torch.tensor([1] + [3] * copies)
        values.append(balanced_contrastive(views, prototypes, target, reduction="none")[0])
    assert_close(values[1], values[0])
    assert_close(values[2], values[0])


def test_length_does_not_matter() -> None:
    given = leaves(2)
    longer = {name: leaf * torch.arange(1.0, len(leaf) + 1)[:, None] for name, leaf in given.items()}
    assert_close(balanced_contrastive(**longer, target=TARGET), balanced_contrastive(**given, target=TARGET))


def test_a_view_without_direction() -> None:
    given = leaves(2)
    given["views"][4] = 0
    found = gradients(lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET), given)
    assert all(value.isfinite().all() for value in found.values())
    assert (found["views"][4] == 0).all()


@pytest.mark.parametrize("temperature", [0.1, 0.07, 0.01])
def test_float32_is_as_good_as_eager(temperature: float) -> None:
    given = leaves(2, torch.float32)
    wide = {name: leaf.double() for name, leaf in given.items()}
    exact = gradients(lambda views, prototypes: dense(views, prototypes, TARGET, temperature).mean(), wide)
    eager = gradients(lambda views, prototypes: dense(views, prototypes, TARGET, temperature).mean(), given)
    ours = gradients(
        lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET, temperature=temperature), given
    )
    for name, value in exact.items():
        assert error(ours[name], value) <= error(eager[name], value) + TOLERANCE[torch.float32], name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_half_precision(temperature: float, dtype: torch.dtype) -> None:
    """The self-similarity 1 / T would be the row's maximum, and all else 0 in float16: the arithmetic is float32."""
    options: Any = {"temperature": temperature}
    assert_same(
        lambda views, prototypes: balanced_contrastive(views, prototypes, TARGET, **options),
        lambda views, prototypes: dense(views, prototypes, TARGET, temperature).mean(),
        leaves(2, dtype),
        dtype,
    )


def test_autocast_does_not_round_the_similarities() -> None:
    given = leaves(2, torch.float32)
    plain = balanced_contrastive(**given, target=TARGET, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = balanced_contrastive(**given, target=TARGET, temperature=0.01)
    assert cast.dtype == torch.float32
    assert_close(cast, plain)


ROWS, PROTOTYPES = torch.randn(2 * N, D), torch.randn(C, D)
BASE = losses.LogitAdjustmentLoss(COUNTS)
BCL = losses.BalancedContrastiveLoss
ERRORS = [
    ("temperature", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET, temperature=0.0)),
    ("reduction", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET, reduction="avg")),  # type: ignore[arg-type]
    ("views", lambda: balanced_contrastive(ROWS[0], PROTOTYPES, TARGET)),
    ("prototypes", lambda: balanced_contrastive(ROWS, PROTOTYPES[:, :-1], TARGET)),
    ("target", lambda: balanced_contrastive(ROWS[1:], PROTOTYPES, TARGET)),
    ("target", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET + 2)),
    ("target", lambda: balanced_contrastive(ROWS, PROTOTYPES, TARGET.float())),
    ("target", lambda: balanced_contrastive(ROWS, PROTOTYPES, torch.full((N,), -100))),
    ("base", lambda: BCL("ce")),  # type: ignore[arg-type]
    ("base", lambda: BCL(losses.CrossEntropyLoss(reduction="sum"))),
    ("base", lambda: BCL(losses.EstimatedOffsetLoss(C, D))),
    ("classification_weight", lambda: BCL(BASE, classification_weight=-1.0)),
    ("contrastive_weight", lambda: BCL(BASE, contrastive_weight=math.nan)),
    ("temperature", lambda: BCL(BASE, temperature=0.0)),
]


@pytest.mark.parametrize("names, call", ERRORS)
def test_errors(names: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\b{names}\b"):
        call()


def test_random_batches() -> None:
    """Many classes, some without a sample."""
    target = classes_of(21, 40, 814)
    assert_same(
        lambda views, prototypes: balanced_contrastive(views, prototypes, target, temperature=0.2),
        lambda views, prototypes: dense(views, prototypes, target, 0.2).mean(),
        {"views": normal(42, 7, seed=815), "prototypes": normal(40, 7, seed=816)},
    )
