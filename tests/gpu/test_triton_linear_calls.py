"""The GPU's linear and cosine statistics: what is launched at real sizes, and the public functions on these kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, gradients, normal
from tolerances import assert_close
from torch import Tensor

pytest.importorskip("triton")

from linear_problems import DEVICE

from benchmarks.gpu.traffic import Library
from lt_kernels import memory_budget
from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.functional import (
    DBM,
    ArcFace,
    MixedTarget,
    SphereFace,
    cosine_margin_cross_entropy,
    linear_cross_entropy,
)
from lt_kernels.ops import use_kernels
from lt_kernels.triton import linear
from lt_kernels.triton.launch import INTERPRETED, recorded

pytestmark = [
    pytest.mark.usefixtures("tensor_float"),
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no CUDA device, and TRITON_INTERPRET=0"),
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),  # of numpy, in the interpreter
]


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
    assert names[:4] == ["inverse_norm_kernel"] * 2 + ["statistics_kernel", "statistics_merge_kernel"]
    assert names[4:] == ["slab_gradient_kernel", "tangent_kernel"] * slabs + ["tangent_kernel"]
    made = [call.arguments[name] for call in calls for name in ("parts", "out") if name in call.arguments]
    assert max(tensor.numel() for tensor in made) <= max(rows * slab, classes * size)
    assert calls[2].arguments["parts"].numel() < 2**23


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


KERNELS = pytest.mark.skipif(not INTERPRETED, reason="use_kernels('triton') is for Triton's interpreter")
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "linear": (linear_cross_entropy, {"label_smoothing": 0.1, "focal_gamma": 1.5}),
    "bias": (linear_cross_entropy, {"reduction": "none"}),
    "arcface": (cosine_margin_cross_entropy, {"margin": ArcFace(0.4), "scale": 6.0}),
    "sphereface": (cosine_margin_cross_entropy, {"margin": SphereFace(3), "scale": 2.0}),
    "dbm": (cosine_margin_cross_entropy, {"margin": DBM(counts_of(40, 61), 0.3), "scale": 6.0}),
}


@pytest.mark.parametrize(
    "name, target",
    [*((name, "classes") for name in FUNCTIONS), ("linear", "mixed"), ("arcface", "mixed"), ("bias", "probabilities")],
)
def test_public_functions(name: str, target: str) -> None:
    """Values and gradients in slabs, the same as by the definition in float64."""
    function, options = FUNCTIONS[name]
    first, second = classes_of(19, 40, 62), classes_of(19, 40, 63)
    first[2] = -100
    targets: dict[str, Callable[[str], Any]] = {
        "classes": first.to,
        "mixed": lambda device: MixedTarget(first.to(device), second.to(device), 0.3),
        "probabilities": normal(19, 40, seed=64).softmax(1).to,
    }
    shapes = {"input": (19, 6), "linear_weight": (40, 6), "offset": (40,), "linear_bias": (40,)}
    leaves = {
        key: normal(*shape, seed=65 + len(shape), dtype=torch.float32)
        for key, shape in shapes.items()
        if key != "linear_bias" or name == "bias"
    }

    def call(on: str = "cpu", **given: Tensor) -> Tensor:
        return function(target=targets[target](on), **options, **given)

    with use_kernels("reference"):
        exact = gradients(call, {key: leaf.double() for key, leaf in leaves.items()})
    with use_kernels("triton") if INTERPRETED else nullcontext(), memory_budget(4 * 19 * 40):
        ours = gradients(lambda **given: call(DEVICE, **given), {key: leaf.to(DEVICE) for key, leaf in leaves.items()})
    for key, value in exact.items():
        assert_close(ours[key].cpu(), value, torch.float32 if INTERPRETED else torch.float16, key)
