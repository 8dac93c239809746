"""Repulsion of raw products w_i . w_j: large ones, rows without a direction, the list of neighbours, derivatives."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
from class_weights import exact, ours, similar
from helpers import gradients, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.functional import logit_weight_repulsion
from lt_kernels.ops import tiles
from lt_kernels.regularizers import LogitWeightRepulsion

pytestmark = pytest.mark.usefixtures("kernels")


def long(classes: int, lengths: Any = 30.0) -> Tensor:
    """Class weights of these lengths, whose products exp cannot hold."""
    rows = torch.nn.functional.normalize(similar(classes, 24, 0.4, torch.float64), dim=1)
    return rows * torch.as_tensor(lengths).reshape(-1, 1)


@pytest.mark.parametrize("classes", [40, 1100])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.4])
def test_large_products(threshold: float, classes: int) -> None:
    """Length 30; and lengths 2 and 40 of similar rows, whose product is far above the square of the shorter one."""
    for weight in (long(classes), long(classes, torch.where(torch.arange(classes) % 3 == 1, 40.0, 2.0))):
        left, right = (
            gradients(call(threshold, "raw"), {"weight": weight}, torch.ones(classes)) for call in (ours, exact)
        )
        assert weight.square().sum(1).max() > 899  # exp holds up to 709
        for name, value in left.items():
            assert_close(value, right[name], torch.float64)


@pytest.mark.parametrize("classes", [40, 1100])
def test_large_products_in_float32(classes: int) -> None:
    """As close to float64 as torch with all products in memory; the values are differences of numbers near 900."""
    weight = long(classes).float()
    grad = torch.ones(classes)
    found, eager = (gradients(call(0.4, "raw"), {"weight": weight}, grad) for call in (ours, exact))
    truth = gradients(exact(0.4, "raw"), {"weight": weight.double()}, grad)
    for name in ("value", "weight"):
        size = 900 if name == "value" else float(truth[name].abs().max())
        errors = [float((one[name] - truth[name]).abs().max()) / size for one in (found, eager)]
        assert errors[0] <= errors[1] + 1e-6, name


def test_more_than_exp_holds_in_one_row() -> None:
    """Two rows of length 1e4: R_i = log(1 + e^(r_ij - r_ii) + ...) is exact where products are 1e8."""
    weight = torch.tensor([[1e4, 0.0], [8e3, 6e3], [0.0, -1e4]], dtype=torch.float64)
    value = logit_weight_repulsion(weight, threshold=0.4, project="raw", reduction="none")
    assert_close(value, torch.zeros(3, dtype=torch.float64))
    longer = torch.tensor([[1.0, 0.0], [1e4, 0.0]], dtype=torch.float64)
    value = logit_weight_repulsion(longer, threshold=0.4, project="raw", reduction="none")
    assert_close(value, torch.tensor([1e4 - 1, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("threshold", [-1.0, 0.4])
def test_zero_rows(threshold: float) -> None:
    """A row of norm 0 has cosine 0 and products of 0, whichever pairs are active: R = log C."""
    weight = similar(50, 40, threshold, torch.float32)
    weight[::7] = 0.0
    result = gradients(ours(threshold, "raw"), {"weight": weight}, torch.ones(50))
    assert_close(result["value"][::7], torch.tensor(50.0).log().expand(8), torch.float32)
    share = torch.softmax(torch.zeros(50), 0)  # of a row of norm 0; it is repelled by all rows if all pairs are active
    if threshold < 0:
        products = (weight @ weight.T).double()
        others = products.softmax(1)[:, 0] + share[0]
        others[0] = 0.0
        assert_close(result["weight"][0], (others[:, None] * weight).sum(0), torch.float32)
    else:
        assert not result["weight"][::7].any()


def test_not_finite() -> None:
    weight = similar(1030, 40, 0.4, torch.float32, gap=2e-6)
    weight[5, 3], weight[1029, 0] = torch.nan, torch.inf
    value = logit_weight_repulsion(weight, project="raw", reduction="none")
    assert value.isnan().nonzero().flatten().tolist() == [5, 1029]


def test_of_one_class() -> None:
    assert logit_weight_repulsion(torch.tensor([[3.0, 4.0]]), project="raw").item() == 0


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.4])
def test_gradcheck(threshold: float) -> None:
    weight = similar(9, 5, threshold, torch.float64, gap=1e-2).requires_grad_()
    torch.autograd.gradcheck(ours(threshold, "raw"), (weight,))
    torch.autograd.gradcheck(LogitWeightRepulsion(threshold, "raw", "none", neighbours="list"), (weight,))


def test_screened_is_unscreened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pairs, values and R with int8 products and without them; and the same list as of the cosines."""
    weight = 0.1 * similar(1100, 40, 0.4, torch.float32, gap=2e-6)
    found = []
    for screened in (True, False):
        if screened and not tiles._byte_products():
            continue
        monkeypatch.setattr(tiles, "screening", lambda *_, on=screened: (on, "test"))
        total, _, first, second, value, count, _ = tiles.forward(weight, 0.4, True)
        place = (first[: int(count)].long() * 1100 + second[: int(count)]).sort()
        found.append((total, place.values, value[: int(count)][place.indices]))
        assert_close(value[: int(count)], tiles.listed_op(weight, torch.ones(1100), first, second)[: int(count)])
        assert torch.equal(tiles.forward(weight, 0.4)[5], count)
    for left, right in zip(found[0], found[-1], strict=True):
        assert_close(left.double(), right.double(), torch.float32)


def test_a_list_of_neighbours(kernels: str) -> None:
    """Between two builds too, with rows that grow, on which the list does not depend."""
    term, weight = LogitWeightRepulsion(0.4, "raw", neighbours="list", skin=0.1), similar(200, 64, 0.4, torch.float64)
    for step in range(4):
        moved = weight * (1 + step) + 0.002 * normal(200, 64, seed=step)
        left, right = (
            gradients(call, {"linear_weight": moved}, torch.tensor(1.0))
            for call in (term, lambda linear_weight: published.logit_weight_repulsion(linear_weight, 0.4, "raw"))
        )
        assert term.status == f"a list of {term.pairs} pairs"
        for name, value in left.items():
            assert_close(value, right[name], torch.float64)
    assert term.rebuilds == 1
