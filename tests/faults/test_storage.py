"""A tensor whose storage was released (FSDP, offloading) is an error that names it; reading it ends the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import classes_of, normal
from torch import Tensor

from lt_kernels import contrastive, functional, heads, losses
from lt_kernels.functional import MixedTarget, SphereFace

N, C, D = 6, 9, 8
Tensors = dict[str, Tensor]


def tensors() -> Tensors:
    """Everything that a loss takes."""
    shapes = {"x": (N, D), "w": (C, D), "b": (C,), "z": (N, C), "o": (C,), "rows": (N, C), "table": (C, C)}
    made = {name: normal(*shape, seed=len(name), dtype=torch.float32) for name, shape in shapes.items()}
    share = torch.rand(N, C).softmax(1)
    return made | {"y": classes_of(N, C, 3), "c": torch.arange(1.0, C + 1), "p": share, "lam": torch.rand(N)}


CASES: dict[str, tuple[str, Callable[[Tensors], Any]]] = {
    "logits": ("zyco", lambda t: functional.offset_cross_entropy(t["z"], t["y"], t["c"], offset=t["o"])),
    "smoothing": ("zyc", lambda t: functional.offset_cross_entropy(t["z"], t["y"], label_smoothing=t["c"] / C)),
    "focal": ("zy", lambda t: functional.offset_cross_entropy(t["z"], t["y"], focal_gamma=1.0)),
    "probabilities": ("zp", lambda t: functional.offset_cross_entropy(t["z"], t["p"])),
    "linear": ("xwyb", lambda t: functional.linear_cross_entropy(t["x"], t["w"], t["y"], linear_bias=t["b"])),
    "cosine": ("xwyo", lambda t: functional.cosine_margin_cross_entropy(t["x"], t["w"], t["y"], offset=t["o"])),
    "SphereFace": (
        "xwy",
        lambda t: functional.cosine_margin_cross_entropy(t["x"], t["w"], t["y"], margin=SphereFace()),
    ),
    "lade": ("zyc", lambda t: functional.lade_regularizer(t["z"], t["y"], t["c"])),
    "repulsion": ("w", lambda t: functional.logit_weight_repulsion(t["w"])),
    "contrastive": ("xwy", lambda t: contrastive.balanced_contrastive(t["x"], t["w"], t["y"])),
    "prediction": ("x", lambda t: heads.CosineHead(D, C, losses.CosFaceLoss())(t["x"])),
    "counts": ("c", lambda t: losses.BalancedSoftmaxLoss(t["c"])),
}
RELEASED = [
    (name, key) for name, (keys, _) in CASES.items() for key in keys if not (name == "smoothing" and key == "c")
]


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(("name", "key"), RELEASED)
def test_a_released_argument_is_an_error(name: str, key: str, learned: bool) -> None:
    made = tensors()
    if learned:
        for leaf in "xwzb":
            made[leaf].requires_grad_()
    made[key].untyped_storage().resize_(0)
    with pytest.raises((ValueError, RuntimeError), match=r"storage|allocated"):
        CASES[name][1](made)


@pytest.mark.parametrize("table", ["rows", "table"])
def test_a_released_table_is_not_taken_for_none(table: str) -> None:
    made = tensors()
    made[table].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="offset"):
        functional.offset_cross_entropy(made["z"], made["y"], offset=made[table])


def test_a_released_share_of_two_targets() -> None:
    made = tensors()
    made["lam"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="lam"):
        MixedTarget(made["y"], made["y"], made["lam"])


@pytest.mark.parametrize("key", ["x", "w", "y"])
@pytest.mark.parametrize("name", ["cosine", "repulsion"])
def test_what_is_released_before_the_backward_pass(name: str, key: str) -> None:
    """An error, or the gradient that was there already."""
    made, other = tensors(), tensors()
    for each in (made, other):
        each["x"].requires_grad_(), each["w"].requires_grad_()
    expected = torch.autograd.grad(2 * CASES[name][1](other), other["w"])
    value = 2 * CASES[name][1](made)
    made[key].untyped_storage().resize_(0)
    try:
        found = torch.autograd.grad(value, made["w"])
    except (ValueError, RuntimeError) as error:
        assert "storage" in str(error).lower() or "allocated" in str(error)  # noqa: PT017 (either is right)
        return
    assert all(torch.equal(one, right) for one, right in zip(found, expected, strict=True))
