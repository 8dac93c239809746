"""Sums over the rows of a batch that is dealt over ranks: run by test_batches.py, one a rank."""

from __future__ import annotations

import unittest.mock
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from batches import cut
from helpers import classes_of, normal
from launch import main
from state import COUNTS, EVEN, MAKERS, UNEVEN, C, D, bcl
from torch import Tensor, nn

from lt_kernels import heads, losses, posthoc, regularizers
from lt_kernels.functional import lade_regularizer
from lt_kernels.ops.ranks import exchange


def columns(rank: int, world: int, group: Any) -> None:
    """LADE's sums over all rows: value and gradient in every form and dtype, whatever a rank has or ignores."""
    for importance in ("class", "sample"):
        for classes in ("all", "present"):
            settings: dict[str, Any] = {"lam": 0.3, "importance": importance, "classes": classes}
            for sizes in [EVEN[world], *UNEVEN[world]]:
                rows = sum(sizes)
                whole = normal(rows, C, seed=60, spread=3).requires_grad_()
                target = classes_of(rows, C - 1, seed=61)  # the last class is absent
                own = cut(rank, sizes, whole.detach()).clone().requires_grad_()
                exact = lade_regularizer(whole, target, COUNTS, **settings)
                value = lade_regularizer(own, cut(rank, sizes, target), COUNTS, batch_group="all", **settings)
                torch.testing.assert_close(value, exact)
                exact.backward()
                (value * (1 + rank)).backward()
                factor = sum(1 + one for one in range(world))
                torch.testing.assert_close(own.grad, factor * cut(rank, sizes, whole.grad))
                half = own.detach().bfloat16()
                found = lade_regularizer(half, cut(rank, sizes, target), COUNTS, batch_group=group, **settings)
                assert found.dtype is torch.bfloat16
                torch.testing.assert_close(found.double(), exact.detach(), rtol=0.02, atol=0.02)
    term = losses.LADELoss(COUNTS, 1.0, reduction="sum")
    logits = normal(3, C, seed=62).requires_grad_()
    (grad,) = torch.autograd.grad(term(logits, torch.full((3,), -100)), logits)  # all rows of all ranks are ignored
    assert bool((grad == 0).all())
    term = regularizers.LADERegularizer(COUNTS)
    torch.testing.assert_close(
        term(logits + rank, torch.tensor([0, 1, 2])),
        lade_regularizer(torch.cat([logits + one for one in range(world)]), torch.tensor([0, 1, 2] * world), COUNTS),
    )


def counted(rank: int, world: int, group: Any) -> None:
    """ARB's counts of the batch: of all ranks, of this process, of a group; of indices, two targets, probabilities."""
    target = classes_of(9, C, seed=70 + rank)
    every = torch.cat([classes_of(9, C, seed=70 + one) for one in range(world)])
    shares = [normal(9, C, seed=80 + one).softmax(1) for one in range(world)]
    loss = losses.ARBLoss(counts="batch")
    torch.testing.assert_close(loss.table(target, C), torch.bincount(every, minlength=C).double().log())
    rows = [normal(9, seed=90 + one).abs() for one in range(world)]
    weighed = torch.bincount(every, torch.cat(rows), minlength=C).log()
    torch.testing.assert_close(loss.table(target, C, sample_weight=rows[rank]), weighed)
    torch.testing.assert_close(loss.table(shares[rank], C), torch.cat(shares).sum(0).log())
    own = torch.bincount(target, minlength=C).double().log()
    torch.testing.assert_close(loss.table_of_whole(target, C), own)
    torch.testing.assert_close(losses.ARBLoss(counts="batch", batch_group=None).table(target, C), own)
    named = losses.ARBLoss(counts="batch", batch_group=group)
    torch.testing.assert_close(named.table_of_whole(target, C), torch.bincount(every, minlength=C).double().log())
    torch.testing.assert_close(loss.eval().table(target, C), own)


def offsets(rank: int, world: int, group: Any) -> None:
    """The offset of a trained head from the features that the ranks have, in batches of any number."""
    torch.manual_seed(3)
    head = heads.LinearHead(D, C, losses.CrossEntropyLoss()).double()
    for sizes in UNEVEN[world]:
        features, target = normal(sum(sizes), D, seed=90), torch.arange(sum(sizes)) % C
        own, labels = cut(rank, sizes, features), cut(rank, sizes, target)
        pairs = [(own[place : place + 1], labels[place : place + 1]) for place in range(len(own))]
        exact = posthoc.empirical_offset(head, features, target)
        found = posthoc.empirical_offset(head, pairs, batch_group="all")
        torch.testing.assert_close(found.bias, exact.bias)
    with pytest.raises(ValueError, match="target must have a sample of every class, got none of 3"):
        posthoc.empirical_offset(head, features, target % 3, batch_group=group)


def exchanged(rank: int, world: int, group: Any) -> None:
    """What a rank sends in a training step, counted at the collectives: the formulas of docs/distributed.md."""
    rows, most = (4, 7)[rank > 0], 7
    features, target = normal(rows, D, seed=1, dtype=torch.float32), torch.arange(rows) % C
    makers: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "offset": (MAKERS["offset"], most * (4 * D + 12)),
        "gml": (MAKERS["gml"], most * (4 * D + 8)),
        "arb": (MAKERS["arb"], 8 * C),
        "lade": (MAKERS["lade"], 24 * C),
        "bcl": (lambda: bcl(out=6), most * (4 * 2 * 6 + 8)),
    }
    for name, (make, wanted) in makers.items():
        head, sent, fresh = make(), [], dist.new_group(list(range(world)))  # whose frames have no room yet
        for part in head.modules():
            if hasattr(part, "batch_group"):
                part.batch_group = fresh
        given = features.repeat(2, 1) if name == "bcl" else features
        head(given, target)  # the frames have their size from here on
        with unittest.mock.patch.object(exchange, "gather", lambda mine, group, sent=sent: _sent(sent, mine, group)):
            head(given, target)
        frame = 8 * exchange.HEAD
        if name in ("arb", "lade"):  # within the frame
            assert sent == [frame + wanted], (name, sent)
        else:
            assert sent[-1] == wanted, (name, sent)
            assert len(sent) == 2, name
        assert sent[0] >= frame


GATHER = exchange.gather


def _sent(sent: list[int], mine: Tensor, group: Any) -> Tensor:
    sent.append(mine.numel() * mine.element_size())
    return GATHER(mine, group)


if __name__ == "__main__":
    main([columns, counted, offsets, exchanged])
