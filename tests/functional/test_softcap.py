"""The cap of logits: its precision in narrow dtypes, and rows without a gradient."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import classes_of, gradients, normal
from tolerances import TOLERANCE, error
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.functional import linear as product

from lt_kernels import memory_budget
from lt_kernels.functional import Accuracy, MixedTarget, linear_cross_entropy, offset_cross_entropy

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True

N, C, D, CAP = 64, 300, 32, 10.0
TARGET = classes_of(N, C, 831)
BF16 = torch.bfloat16


def capped(logits: Tensor) -> Tensor:
    """As a model of plain torch has it."""
    return CAP * torch.tanh(logits / CAP)


def relative(found: Tensor, truth: Tensor) -> float:
    """The norm of the error by that of the truth: most gradients are small against the largest one."""
    return float((found.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("bytes", [2**20, N * C])
@pytest.mark.parametrize("cast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("of", ["features", "logits"])
def test_narrow_logits_are_capped_in_float32(of: str, cast: bool, bytes: int) -> None:
    """No error above eager torch's, whose cap rounds the logits; for features kept and in slabs, and for logits."""
    x, w = normal(N, D, seed=832, spread=2.0, dtype=BF16), normal(C, D, seed=833, dtype=BF16)
    leaves = {"x": x.float(), "w": w.float()} if cast and of == "features" else {"x": x, "w": w}
    leaves = leaves if of == "features" else {"z": product(x, w)}

    def dense(**given: Tensor) -> Tensor:
        logits = given["z"] if of == "logits" else product(given["x"], given["w"])
        return cross_entropy(capped(logits), TARGET, reduction="none")

    def ours(**given: Tensor) -> Tensor:
        if of == "logits":
            return offset_cross_entropy(given["z"], TARGET, softcap=CAP, reduction="none")
        return linear_cross_entropy(given["x"], given["w"], TARGET, softcap=CAP, reduction="none")

    exact = gradients(dense, {name: leaf.double() for name, leaf in leaves.items()}, torch.ones(N).double())
    cotangent = torch.ones(N, dtype=torch.float32 if cast else BF16)
    with memory_budget(bytes), torch.autocast("cpu", BF16) if cast else nullcontext():
        found, eager = gradients(ours, leaves, cotangent), gradients(dense, leaves, torch.ones(N, dtype=BF16))
    assert found["value"].dtype == cotangent.dtype
    for name, truth in exact.items():
        assert error(found[name], truth) <= error(eager[name], truth) + TOLERANCE[BF16], name
        assert relative(found[name], truth) <= relative(eager[name], truth), name


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("target", ["index", "mixed", "soft"])
def test_rows_that_do_not_count_have_no_gradient(target: str, special: float) -> None:
    """Whatever they hold, and the others have theirs."""
    rows = normal(N, seed=834).abs().index_fill(0, torch.tensor([3, 9]), 0.0)
    y = TARGET if target == "soft" else TARGET.index_fill(0, torch.tensor(5), -100)
    soft = normal(N, C, seed=835).softmax(1)
    y = {"index": y, "mixed": MixedTarget(y, y, 0.3), "soft": soft}[target]  # type: ignore[assignment]
    out = torch.tensor([3, 9] if target == "soft" else [3, 5, 9])
    options: dict[str, Any] = {"softcap": CAP, "sample_weight": rows, "z_loss": 0.1}
    w, x, z = (normal(*size, seed=836) for size in ((C, D), (N, D), (N, C)))
    for call, clean in (
        (lambda z: offset_cross_entropy(z, y, **options), z),
        (lambda z: linear_cross_entropy(z, w, y, **options), x),
    ):
        for bytes in (2**20, 8 * 100):
            with memory_budget(bytes):
                found = gradients(call, {"z": clean.index_fill(0, out, special)})["z"]
                plain = gradients(call, {"z": clean})["z"]
            assert not found[out].any()
            torch.testing.assert_close(found, plain)


def test_a_row_that_counts_keeps_its_nan() -> None:
    found = gradients(lambda z: offset_cross_entropy(z, TARGET, softcap=CAP), {"z": torch.full((N, C), torch.nan)})
    assert found["value"].isnan()
    assert found["z"].isnan().all()


@pytest.mark.parametrize("of", ["features", "logits"])
def test_a_class_that_is_not_there_is_no_rival(of: str) -> None:
    """An offset of -inf takes it out of the accuracy, an offset above that changes nothing there."""
    logits, accuracy = torch.tensor([[0.0, 5.0, 1.0]]), Accuracy()
    call: Any = (
        offset_cross_entropy if of == "logits" else lambda x, *y, **k: linear_cross_entropy(x, torch.eye(3), *y, **k)
    )
    for offset, right in ((-torch.inf, 1), (-100.0, 0)):
        accuracy.reset()
        call(logits, torch.tensor([2]), offset=torch.tensor([0.0, offset, 0.0]), accuracy=accuracy)
        assert accuracy.right is not None
        assert int(accuracy.right) == right
