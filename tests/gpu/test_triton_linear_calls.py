"""The GPU's linear and cosine statistics: what is launched at real sizes, and the public functions on these kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device import MARKS

from benchmarks.gpu.traffic import Library
from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.triton import linear
from lt_kernels.triton.launch import recorded

pytestmark = MARKS


FACES, VOCAB, INAT = (4096, 1_000_000, 512), (8192, 128_256, 2048), (256, 8142, 2048)


def launched(sizes: tuple[int, int, int], **given: Any) -> list[Any]:
    """What both passes launch, and the largest tensor that they are given; nothing runs."""
    rows, classes, size = sizes
    x, w = (torch.empty(n, size, dtype=torch.bfloat16, device="meta") for n in (rows, classes))
    target = torch.empty(rows, 1, dtype=torch.int64, device="meta")
    p = Problem(
        x, w, None, target, None, None, None, 30.0, Normalize.BOTH, 0, classes, -100, rows, given.get("slab", classes)
    )
    with recorded() as calls, Library():
        *_, kept, row_scale, column_scale = found = linear.linear_forward(*p, False)
        slopes = found[0], found[1], None, None
        saved = (kept, row_scale, column_scale, found[0], found[4])
        linear.linear_backward(*p, *saved, *slopes, [True, True, False, False])
    return calls


@pytest.mark.parametrize("sizes, slab", [(FACES, 16384), (VOCAB, 8192)])
def test_nothing_is_as_large_as_the_logits(sizes: tuple[int, int, int], slab: int) -> None:
    rows, classes, size = sizes
    calls = launched(sizes, slab=slab)
    names = [call.kernel.fn.__name__ for call in calls]
    slabs = -(-classes // slab)
    assert names[:3] == ["inverse_norm_kernel", "statistics_kernel", "statistics_merge_kernel"]
    assert names[3:] == ["slab_gradient_kernel", "tangent_kernel"] * slabs + ["tangent_kernel"]
    made = [call.arguments[name] for call in calls for name in ("parts", "out") if name in call.arguments]
    assert max(tensor.numel() for tensor in made) <= max(rows * slab, classes * size)
    assert calls[1].arguments["parts"].numel() < 2**23


@pytest.mark.parametrize("sizes", [FACES, VOCAB, INAT, (128, 128_256, 4096), (3, 5, 4)])
def test_programs_are_full_waves(sizes: tuple[int, int, int]) -> None:
    """132 multiprocessors work all the time, or each has the least work that there is."""
    rows, classes, size = sizes
    x, w = (torch.empty(n, size, dtype=torch.bfloat16, device="meta") for n in (rows, classes))
    target = torch.empty(rows, 1, dtype=torch.int64, device="meta")
    p = Problem(x, w, None, target, None, None, None, 1.0, Normalize.NOTHING, 0, classes, -100, rows, classes)
    tile = linear.tile_for(p, gradient=False)
    high, wide = -(-rows // tile.rows), -(-classes // tile.classes)
    tiles, programs = linear.parts_for(high, wide, tile.programs(x)), tile.programs(x)
    waves = -(-(high * -(-wide // tiles)) // programs)
    assert waves * programs * tiles <= 1.12 * high * wide or (waves, tiles) == (1, 1)


def test_large_tiles_without_vectors_of_the_classes() -> None:
    """Where there is enough to do for programs that have a multiprocessor to themselves."""
    x, w = (torch.empty(n, 512, dtype=torch.bfloat16, device="meta") for n in (4096, 1_000_000))
    target = torch.empty(4096, 1, dtype=torch.int64, device="meta")
    p = Problem(x, w, None, target, None, None, None, 1.0, Normalize.NOTHING, 0, len(w), -100, 4096, len(w))
    assert linear.tile_for(p, gradient=False) == (256, 128, 64, 8, 4)
    assert linear.tile_for(p, gradient=True).rows == 128
    assert linear.tile_for(p._replace(normalize=Normalize.BOTH), gradient=False).rows == 128
    assert linear.tile_for(p._replace(input=x[:256], weight=w[:8142]), gradient=False).rows == 128
