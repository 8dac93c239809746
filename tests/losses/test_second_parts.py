"""What all losses with a second part share: compiled as eager, schemas, the same bits, inputs left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, normal
from tolerances import assert_close
from torch import Tensor, nn

from lt_kernels import heads, losses
from lt_kernels.functional import DBM
from lt_kernels.ops import keys

N, C, D = 9, 5, 6
COUNTS = counts_of(C, 881)
TARGET = classes_of(N, C, 882)


def bcl(base: losses.Loss) -> nn.Module:
    """The head of BCL."""
    return heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(base), hidden=5, out_features=4)


def gml(base: losses.Loss) -> nn.Module:
    """The head of GML, with a queue of few places."""
    return heads.GMLHead(D, C, losses.GMLLoss(base, COUNTS), out_features=4, queue=15)


def ncl(margin: DBM | None) -> nn.Module:
    """The head of NCL; two experts of half of the features."""
    loss = losses.NCLLoss(COUNTS, hard_categories=2, margin=margin)
    return heads.NCLHead(D, C, loss, experts=2)


HEADS: dict[str, tuple[Callable[[], Any], int, int]] = {  # the head, views, experts
    "BCL": (lambda: bcl(losses.LogitAdjustmentLoss(COUNTS)), 2, 1),
    "DBM-BCL": (lambda: bcl(losses.DBMLoss(COUNTS)), 2, 1),
    "GML": (lambda: gml(losses.LogitAdjustmentLoss(COUNTS)), 2, 1),
    "DBM-GML": (lambda: gml(losses.DBMLoss(COUNTS)), 1, 1),
    "NCL": (lambda: ncl(None), 1, 2),
    "DBM-NCL": (lambda: ncl(DBM(COUNTS)), 1, 2),
}


def features_of(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch for the head of that name."""
    _, views, experts = HEADS[name]
    return normal(views * N, experts * D, seed=883, dtype=dtype)


def outcome(step: Any, head: nn.Module, features: Tensor) -> list[Tensor]:
    """Value, and the gradients of features and parameters."""
    leaf = features.clone().requires_grad_()
    head.zero_grad()
    value = step(leaf, TARGET)
    value.backward()
    assert leaf.grad is not None
    return [value.detach(), leaf.grad, *(part.grad.clone() for part in head.parameters() if part.grad is not None)]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test compiles for itself."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", HEADS)
def test_compiled_in_training(name: str) -> None:
    """Two steps, since a queue and the running statistics change in the first."""
    head, other = HEADS[name][0](), HEADS[name][0]()
    other.load_state_dict(head.state_dict())
    compiled = torch.compile(lambda x, y: other(x, y), fullgraph=True, backend="aot_eager")
    for factor in (1.0, -2.0):
        features = factor * features_of(name)
        for found, expected in zip(outcome(compiled, other, features), outcome(head, head, features), strict=True):
            assert_close(found, expected)
    for key, value in head.state_dict().items():
        assert_close(other.state_dict()[key].double(), value.double(), torch.float32, key)


@pytest.mark.parametrize("name", HEADS)
def test_the_same_bits_and_untouched_inputs(name: str) -> None:
    head, other = HEADS[name][0](), HEADS[name][0]()
    other.load_state_dict(head.state_dict())
    features = features_of(name)
    before = features.clone()
    for found, expected in zip(outcome(head, head, features), outcome(other, other, features), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(features, before)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns_and_nothing_is_nan(name: str) -> None:
    """With features that are all the same, too, and with one class only."""
    head = HEADS[name][0]()
    for features in (features_of(name), torch.ones_like(features_of(name))):
        found = outcome(head, head, features)
        assert len(found) == 2 + len(list(head.parameters()))
        assert all(value.isfinite().all() for value in found)


@pytest.mark.parametrize("name", HEADS)
def test_autocast(name: str) -> None:
    head = HEADS[name][0]().eval()
    plain = head(features_of(name), TARGET).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head(features_of(name), TARGET)
    assert cast.dtype == torch.float32
    assert (cast.detach() - plain).abs() < 0.05 * plain


@pytest.mark.parametrize("wants", [[True, True], [False, True], [True, False]])
@pytest.mark.parametrize("slab", [2, 100])
def test_operators(slab: int, wants: list[bool]) -> None:
    """torch's own check of schema, fake kernel and tracing; an empty place, and rows that see all keys."""
    query, key, offset = normal(N, D, seed=884), normal(C + 2, D, seed=885), normal(C + 2, seed=886)
    key_class = torch.tensor([0, 1, -1, 1, 2, 0, 4])
    left_out = torch.tensor([0, 5, -1, 1, 3, 4, -1, -1, -1])
    problem = (query, key, TARGET, key_class, offset, left_out, slab)
    torch.library.opcheck(keys.forward_op, problem)
    slopes = (normal(N, seed=887), normal(N, seed=888), wants)
    torch.library.opcheck(keys.backward_op, (*problem, *keys.forward_op(*problem), *slopes))
