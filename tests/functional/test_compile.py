"""torch.compile(fullgraph=True) equals eager, for every option of every function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, normal
from scenes import C, all_scenes
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, heads, losses, memory_budget, schedules
from lt_kernels.functional import SphereFace

# torch 2.13 itself makes an instance of every autograd.Function that it compiles, and warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")

# A budget is set around a compiled function, not inside it (test_slabs_of_a_budget).
SCENES = {name: scene for name, scene in all_scenes().items() if "slabs" not in name}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test compiles for itself."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def outcome(function: Any, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Value and gradients."""
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    value = function(*leaves)
    return (value.detach(), *torch.autograd.grad(value.sum(), leaves))


def equal(function: Any, leaves: tuple[Tensor, ...], backend: str) -> None:
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for found, expected in zip(outcome(compiled, leaves), outcome(function, leaves), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("name", SCENES)
def test_every_option(name: str) -> None:
    equal(SCENES[name].function, SCENES[name].leaves, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["missing", "dbm", "repulsion"])
def test_inductor(name: str) -> None:
    """Code generation on top: what it fuses around the operators must not change them."""
    function, leaves = SCENES[name]
    equal(lambda *leaves: 2 * function(*(1.5 * leaf for leaf in leaves)), leaves, "inductor")


@pytest.mark.parametrize("name", ["linear bias offset", "dbm", "sphereface", "linear mixed"])
def test_slabs_of_a_budget(name: str) -> None:
    """Also where the logits do not fit and are made again in the backward pass."""
    with memory_budget(24):
        equal(SCENES[name].function, SCENES[name].leaves, "aot_eager")


def test_sizes_may_change() -> None:
    """One graph serves batches of any size."""
    counts = counts_of(C, 601)
    loss = losses.BalancedSoftmaxLoss(counts)
    compiled = torch.compile(lambda z, y: loss(z, y), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (7, 12, 33):
        logits, target = normal(rows, C, seed=602, dtype=torch.float32), classes_of(rows, C, 603)
        assert_close(compiled(logits, target), loss(logits, target))


def test_head_in_a_training_step() -> None:
    """A compiled head with its loss, through an optimiser step, with a weight set by a schedule in between."""
    counts = counts_of(C, 604)
    features, target = normal(9, 4, seed=605, dtype=torch.float32), classes_of(9, C, 606)
    weights = []
    for compiled in (False, True):
        torch.manual_seed(3)
        loss = losses.LDAMLoss(counts, scale=5.0)
        head = heads.CosineHead(4, C, loss)
        step = torch.compile(lambda x, y: head(x, y), fullgraph=True, backend="aot_eager") if compiled else head  # noqa: B023
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        for epoch in range(2):
            loss.set_weight(schedules.DeferredReweighting(counts, start_epoch=1)(epoch))
            optimizer.zero_grad()
            step(features, target).backward()
            optimizer.step()
        weights.append(head.weight.detach().clone())
    assert_close(weights[1], weights[0])


def test_annealing_given_as_a_tensor_is_not_compiled_in() -> None:
    features, weight, target = normal(9, 4, seed=607).float(), normal(C, 4, seed=608).float(), classes_of(9, C, 609)
    graphs, annealing = [], torch.tensor(7.0)

    def loss(lam: Tensor) -> Tensor:
        margin = SphereFace(margin=4, annealing=lam)  # by name: the compiler of torch 2.11 loses arguments by place
        return functional.cosine_margin_cross_entropy(features, weight, target, margin=margin, scale=2.0)

    compiled = torch.compile(loss, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    found = []
    for value in (7.0, 0.0, 1000.0):
        found.append(compiled(annealing.fill_(value)))
        assert_close(found[-1], loss(torch.tensor(value)))
    assert len(graphs) == 1
    assert len({value.item() for value in found}) == 3


def test_autocast_inside() -> None:
    features, weight, target = normal(9, 4, seed=607).float(), normal(C, 4, seed=608).float(), classes_of(9, C, 609)

    def step(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.linear_cross_entropy(x, w, target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for found, expected in zip(outcome(compiled, (features, weight)), outcome(step, (features, weight)), strict=True):
        assert_close(found, expected, torch.bfloat16)
