"""A loss keeps its float64 tables in the dtype of the arithmetic, until they change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import assert_close

from lt_kernels import losses

N, C = 6, 5


def problem():
    return normal(N, C, seed=1, spread=3, dtype=torch.float32).requires_grad_(), classes_of(N, C, seed=2)


def test_tables_of_a_module_are_cast_once_and_again_when_they_change():
    loss, (logits, target) = losses.BalancedSoftmaxLoss(torch.arange(1, C + 1)), problem()
    first = loss(logits, target)
    cast = loss._casts["offset"][2]
    assert torch.equal(loss(logits, target), first)
    assert loss._casts["offset"][2] is cast
    assert cast.dtype == torch.float32
    loss.offset.add_(torch.arange(C))  # in place, as load_state_dict does
    changed = loss(logits, target)
    assert_close(changed, F.cross_entropy(logits + loss.offset.float(), target), torch.float32)
    assert changed != first
    loss.set_weight(torch.arange(1.0, C + 1))
    weighed = loss(logits, target)
    assert weighed != changed
    loss.set_weight(None)
    assert torch.equal(loss(logits, target), changed)
    assert_close(loss(logits.double(), target), changed.double(), torch.float32)  # another dtype of the arithmetic
    assert set(loss.state_dict()) == {"offset"}


def test_a_cast_outlives_no_context():
    """What torch.func, inference mode or a fake mode make of a table must not be met again outside of them."""
    logits, target = problem()
    contexts = {
        "func": lambda loss: torch.func.grad(loss)(logits, target),
        "inference": lambda loss: torch.inference_mode()(loss)(logits, target),
        "vmap": lambda loss: torch.func.vmap(loss)(logits[None].expand(2, N, C), target[None].expand(2, N)),
    }
    for enter in contexts.values():
        loss = losses.CrossEntropyLoss(torch.arange(1.0, C + 1))
        enter(loss)
        assert not loss._casts
        loss(logits, target).backward()  # which keeps the weights
        assert type(loss._casts["weight"][2]) is torch.Tensor
    with torch.inference_mode():
        loss = losses.BalancedSoftmaxLoss(torch.arange(1, C + 1))
        loss(logits, target)
