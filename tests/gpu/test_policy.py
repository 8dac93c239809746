"""How a GPU walks the logits of linear operators, what it is told of it, and what it asks the library for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lt_kernels import memory_budget, ops
from lt_kernels.ops.budget import SLAB, TILE, Policy
from lt_kernels.reference import linear as reference

BF16 = torch.bfloat16
# name: N, C, d, whether the logits are kept, and the blocks of rows and classes, in bfloat16 within the default budget
WALKS = {
    "cifar": (128, 100, 64, True, 128, 100),
    "inat": (256, 8142, 2048, True, 256, 8142),
    "vocab": (8192, 128_256, 2048, False, 8192, 8192),
    "faces": (4096, 1_000_000, 512, False, 4096, 16_384),
    "many rows": (200_000, 1000, 512, False, 67_072, 1000),
}


@pytest.fixture(autouse=True)
def a_gpu() -> Iterator[None]:
    """Tensors that say they are on one."""
    with FakeTensorMode():
        yield


def policy(rows: int, classes: int, size: int, dtype: torch.dtype = BF16, device: str = "cuda") -> Policy:
    x, w = (torch.empty(n, size, dtype=dtype, device=device) for n in (rows, classes))
    return ops.linear_policy(x, w)


@pytest.mark.parametrize("name", WALKS)
def test_walks(name: str) -> None:
    *sizes, keep, row_slab, class_slab = WALKS[name]
    assert policy(*sizes)[:3] == (keep, row_slab, class_slab)


@pytest.mark.parametrize("rows, classes", [(8192, 128_256), (4096, 1_000_000), (200_000, 1000), (300_000, 300_000)])
@pytest.mark.parametrize("budget", [2**26, 2**28, 2**36])
def test_a_slab_is_within_the_budget_and_of_whole_tiles(rows: int, classes: int, budget: int) -> None:
    with memory_budget(budget):
        found = policy(rows, classes, 512)
    if found.keep:
        assert 2 * rows * classes < budget
        return
    assert 2 * found.row_slab * found.class_slab <= min(budget // 2, SLAB["cuda"])
    cut = found.class_slab if classes > rows else found.row_slab
    assert cut % TILE == 0 or cut < TILE


@pytest.mark.parametrize("budget", [8, 100, 5000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tiny_budgets(budget: int, device: str) -> None:
    with memory_budget(budget):
        for rows, classes in ((0, 5), (1, 1), (7, 300), (300, 7)):
            found = policy(rows, classes, 16, device=device)
            assert 1 <= found.row_slab <= max(rows, 1)
            assert 1 <= found.class_slab <= classes


def test_float16_counts_four_bytes() -> None:
    """Its logits are float32."""
    with memory_budget(5 * 100 * 100):
        assert policy(100, 100, 8, BF16).keep
        assert not policy(100, 100, 8, torch.float16).keep


def test_reason() -> None:
    faces, inat, rows = (policy(*WALKS[name][:3]).reason for name in ("faces", "inat", "many rows"))
    assert "4,096 x 1,000,000 logits of 7,812.5 MiB within 256.0 MiB" in faces
    assert "made again" in faces
    assert "slabs of classes" in faces
    assert "256 x 8,142 logits of 4.0 MiB" in inat
    assert "kept" in inat
    assert "slabs of rows" in rows


class Half:
    """Stands for a half-precision matrix on a GPU."""

    is_cuda, is_meta = True, False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.T = dtype, self

    def __getitem__(self, _: slice) -> Half:
        return self


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch.mm and torch.addmm are called with; they return nothing."""
    calls: list[Any] = []
    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, lambda *args, _name=name, **options: calls.append((_name, args, options)))
    return calls


def test_sums_of_half_precision_products_are_float32(asked: list[Any]) -> None:
    """A GPU's library adds a product of bfloat16 to a float32 sum without rounding it in between."""
    left, right, total = Half(BF16), Half(BF16), Half(torch.float32)
    for first in (True, False):
        reference.add_product(total, left, right, first)  # type: ignore[arg-type]
    wanted = {"out_dtype": torch.float32, "out": total}
    assert asked == [("mm", (left, right), wanted), ("addmm", (total, left, right), wanted)]


def test_float16_logits_are_float32_from_the_start(asked: list[Any]) -> None:
    """Not float16 that is widened when it has overflowed."""
    x: Any = Half(torch.float16)
    problem = reference.Problem(x, x, None, x, None, None, None, 1.0, 0, 0, 6, -100, 4, 6)
    reference._product(problem, slice(0, 4), slice(0, 6))
    assert asked == [("mm", (x, x), {"out_dtype": torch.float32})]
