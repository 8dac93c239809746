"""The parts of the list of near pairs: norms, bounds, what other devices have, and the operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import normal
from test_neighbours import near
from tolerances import assert_close

from lt_kernels.ops import neighbours, tiles
from lt_kernels.reference import gram as reference

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_pairs_are_active(dtype: torch.dtype, kernels: str) -> None:
    """To the bit, where the tiles are screened: their cosines and the list's are the same products."""
    weight = near(300, 77).to(dtype)
    weight[:2] = torch.tensor([[0.0], [1e-13]])
    scale = neighbours.inverse_norm(weight, 0.4)
    assert_close(scale, reference.inverse_norm(weight))
    if kernels == "compiled" and tiles.screening(weight, 0.4)[0]:
        assert torch.equal(scale, tiles.units_op(weight)[0])
        _, _, first, second, value, count, _ = tiles.forward(weight, 0.4)
        found = (index[: int(count)] for index in (first, second))
        assert torch.equal(tiles.listed_op(weight, scale, *found), value[: int(count)])


def test_products_of_less_precision_are_allowed_for() -> None:
    weight = near(10, 40)
    plain = neighbours.limit(weight, 0.4, 0.1)
    try:
        torch.set_float32_matmul_precision("medium")
        assert neighbours.limit(weight, 0.4, 0.1) < plain - 2 * 2.0**-9
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_other_devices_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs by slabs of rows, and the gradient without a host sync, are those of the tiles."""
    for where, name in ((neighbours, "_WIDE"), (reference, "_SLAB")):
        monkeypatch.setattr(where, name, 2000)  # several parts
    weight, bound = near(300, 40).float(), 0.3
    found, walked = neighbours.near_pairs(weight, bound), neighbours._walked(weight, bound)
    assert found is not None
    assert walked is not None
    for ours, other in zip(neighbours.visiting(*found, 300), neighbours.visiting(*walked, 300), strict=True):
        assert torch.equal(ours, other)
    assert neighbours._walked(torch.ones(400, 40), bound) is None
    scale = reference.inverse_norm(weight)
    torch.library.opcheck(tiles.listed_op, (weight, scale, *found))
    total, *pairs = neighbours.active_pairs(weight, scale, 0.4, *neighbours.visiting(*found, 300))
    assert 0 < int(pairs[-1]) < found[0].numel()
    slope, own = 1 / total, normal(300, seed=4).float()
    for project in (True, False):
        inputs: list[Any] = [weight, scale, slope, own, *pairs, project, False, None]
        assert_close(neighbours._gathered(*inputs), tiles.pairs_op(*inputs))
