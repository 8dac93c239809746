"""No GPU kernel touches memory outside of its tensors, and none writes a number twice: in the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import classes_of, counts_of, normal
from torch import Tensor

pytest.importorskip("triton")

from memory import Touched, watched

from lt_kernels import functional as F
from lt_kernels import memory_budget
from lt_kernels.functional import DBM, ArcFace, CosFace, MixedTarget, SphereFace
from lt_kernels.ops import use_kernels
from lt_kernels.triton.launch import INTERPRETED

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="only the interpreter's memory can be watched"),
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),  # of numpy, in the interpreter
]
COUNTED = {"sums", "degree", "found", "count", "begins"}  # what gram's kernels add to, atomically and as integers
DTYPES = [torch.float32, torch.bfloat16]


def check(launched: list[Touched]) -> None:
    """Nobody waits for another program within a launch: what one writes no other may write."""
    assert launched
    for one in launched:
        twice = [name for name, counts in one.writes.items() if name not in COUNTED and (counts > 1).any()]
        assert twice == [], one.kernel


def numbers(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits, and targets some of which are ignored."""
    target = classes_of(rows, classes, seed=1)
    target[: rows // 2 : 2] = -100
    return normal(rows, classes, seed=2, dtype=dtype), target


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda z, y: F.offset_cross_entropy(z, y),
    "smoothed": lambda z, y: F.offset_cross_entropy(z, y, label_smoothing=0.1, focal_gamma=2.0),
    "mixed": lambda z, y: F.offset_cross_entropy(z, MixedTarget(y.clamp(0), y.clamp(0).flip(0), 0.3)),
    "sum": lambda z, y: F.offset_cross_entropy(z, y, reduction="sum"),
    "each": lambda z, y: F.offset_cross_entropy(z, y, reduction="none").sum(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (3, 37), (5, 1030)])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows(loss: str, rows: int, classes: int, dtype: torch.dtype) -> None:
    """Logits are read once, and at a row's two targets once more, their gradient is written once."""
    logits, target = numbers(rows, classes, dtype)
    with use_kernels("triton"), watched() as launched:
        torch.func.grad(LOSSES[loss])(logits, target)  # plain autograd has the C++ kernels' short cut on a CPU
    check(launched)
    reads = [one.reads["logits"] for one in launched if "logits" in one.reads]
    assert len(reads) >= 2
    assert max(counts.sum() for counts in reads) <= logits.numel() + 2 * rows
    assert all((counts.reshape(rows, classes)[(target != -100).numpy()] >= 1).all() for counts in reads)
    (written,) = [one.writes["d_logits"] for one in launched if "d_logits" in one.writes]
    assert (written == 1).all()


@pytest.mark.parametrize("classes", [37, 1030])
@pytest.mark.parametrize("form", ["one", "each"])
def test_rows_with_an_offset(form: str, classes: int) -> None:
    logits, target = numbers(5, classes, torch.float32)
    offset = normal(*((5,) if form == "each" else ()), classes, seed=3, dtype=torch.float32).requires_grad_()
    with use_kernels("triton"), watched() as launched:
        F.offset_cross_entropy(logits.requires_grad_(), target, offset=offset).backward()
    check(launched)


MARGINS = {"none": None, "CosFace": CosFace(0.2), "ArcFace": ArcFace(0.3), "SphereFace": SphereFace(3)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [*MARGINS, "DBM"])
def test_cosines(margin: str, dtype: torch.dtype) -> None:
    input, weight = (normal(n, 19, seed=n, dtype=dtype).requires_grad_() for n in (5, 133))
    _, target = numbers(5, 133, dtype)
    chosen = DBM(counts_of(133, seed=4)) if margin == "DBM" else MARGINS[margin]
    with use_kernels("triton"), watched() as launched:
        F.cosine_margin_cross_entropy(input, weight, target, margin=chosen, label_smoothing=0.1).backward()
    check(launched)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("budget", [2**28, 2**10])
def test_linear(budget: int, dtype: torch.dtype) -> None:
    input, weight = (normal(n, 19, seed=n, dtype=dtype).requires_grad_() for n in (5, 133))
    bias = normal(133, seed=5, dtype=dtype).requires_grad_()
    _, target = numbers(5, 133, dtype)
    with use_kernels("triton"), memory_budget(budget), watched() as launched:
        F.linear_cross_entropy(input, weight, target, linear_bias=bias).backward()
    check(launched)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.05, 0.4])
def test_repulsion(threshold: float, dtype: torch.dtype) -> None:
    weight = normal(40, 11, seed=1, dtype=dtype).requires_grad_()
    with use_kernels("triton"), watched() as launched:
        F.logit_weight_repulsion(weight, threshold=threshold).backward()
    check(launched)
