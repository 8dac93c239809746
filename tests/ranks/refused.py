"""What losses that exchange statistics of the batch refuse, and when they exchange none: run by test_batches.py."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import counts_of, normal
from launch import main
from state import COUNTS, MAKERS, C, D, bcl, offset
from told_problem import right
from torch import nn

from lt_kernels import losses
from lt_kernels.distributed import RankError
from lt_kernels.functional import MixedTarget, lade_regularizer

# A module, what it is called with on one rank alone, and what the error says there and on the others.
WRONG: dict[str, tuple[Callable[[], nn.Module], tuple[Any, Any], type[Exception], str]] = {
    "no features": (MAKERS["offset"], (None, torch.zeros(4).long()), TypeError, "features must be a tensor"),
    "no class": (MAKERS["offset"], (normal(4, D, seed=1), torch.full((4,), C)), IndexError, "target"),
    "another width": (MAKERS["gml"], (normal(4, D + 1, seed=1), torch.zeros(4).long()), ValueError, "features must be"),
    "no rows": (MAKERS["gml"], (normal(0, D, seed=1), torch.zeros(0).long()), ValueError, "target must be"),
    "no class for lade": (MAKERS["lade"], (normal(4, D, seed=1), torch.full((4,), C)), IndexError, "target"),
    "no indices": (MAKERS["arb"], (normal(4, D, seed=1), torch.zeros(4).bool()), TypeError, "target"),
    "no class for arb": (MAKERS["arb"], (normal(4, D, seed=1), torch.full((4,), C)), IndexError, "target"),
    "no second class for arb": (
        MAKERS["arb"],
        (normal(4, D, seed=1), MixedTarget(torch.zeros(4).long(), torch.full((4,), C), 0.5)),
        IndexError,
        "target",
    ),
    "another shape for arb": (
        MAKERS["arb"],
        (normal(4, D, seed=1), torch.zeros(3).long()),
        ValueError,
        "target must have shape",
    ),
    "another shape for arb's logits": (
        lambda: losses.ARBLoss(counts="batch"),
        (normal(4, C, seed=1), torch.zeros(4, 1).long()),
        ValueError,
        "target must have shape",
    ),
    "other probabilities for arb": (
        MAKERS["arb"],
        (normal(4, D, seed=1), torch.full((3, C), 1 / C)),
        ValueError,
        "target must have shape",
    ),
    "another second target for arb": (
        MAKERS["arb"],
        (normal(4, D, seed=1), MixedTarget(torch.zeros(4).long(), torch.zeros(4).long(), torch.ones(3))),
        ValueError,
        "lam must have one number",
    ),
    "no rows of views": (bcl, (normal(0, D, seed=1), torch.zeros(0).long()), ValueError, "target must be"),
    "no views": (bcl, (normal(5, D, seed=1), torch.zeros(4).long()), ValueError, "target must be"),
}


def told(rank: int, world: int, group: Any) -> None:
    """What one rank refuses all refuse, and so what differs: settings, dtypes, shapes, centres, queues."""
    usual = normal(4, D, seed=1), torch.tensor([0, 1, 2, 3])
    for number, (make, wrong, kind, word) in enumerate(WRONG.values()):
        head = make().double()
        if rank == number % world:
            with pytest.raises(kind, match=word):
                head(*wrong)
        else:
            with pytest.raises(RankError, match=f"rank {number % world}: {kind.__name__}: {word}"):
                head(*usual)
        right(rank, world, group)
    for make, word in ((offset, "centers"), (MAKERS["gml"], "the queue's features")):
        head = make().double()
        state = head.loss.center_loss.centers if word == "centers" else head.queue.features
        state.add_(rank)
        with pytest.raises(RankError, match=f"{word} must be the same on every rank"):
            head(*usual)
    kind = torch.float32 if rank else torch.float64
    with pytest.raises(RankError, match=r"the queue's features must be the same on every rank, .*torch\.float"):
        MAKERS["gml"]().to(kind)(usual[0].to(kind), usual[1])
    for settings, word in (({"lam": 0.1 + rank}, "lam"), ({"classes": "present" if rank else "all"}, "classes")):
        with pytest.raises(RankError, match=f"{word} must be the same on every rank"):
            losses.LADELoss(COUNTS, **settings)(normal(4, C, seed=1), usual[1])
    with pytest.raises(RankError, match="logits must be the same on every rank"):
        lade_regularizer(normal(4, C + rank, seed=1), usual[1], counts_of(C + rank, seed=1), batch_group=group)
    with pytest.raises(RankError, match="num_classes must be the same on every rank"):
        losses.ARBLoss(counts="batch")(normal(4, C + rank, seed=1), usual[1])
    with pytest.raises(RankError, match="every rank must make the same calls"):
        losses.ARBLoss(counts="batch")(normal(4, C, seed=1), usual[1]) if rank else offset().double()(*usual)
    right(rank, world, group)


def of_one_rank(rank: int, world: int, group: Any) -> None:
    """What one rank refuses of a teacher or a target all refuse, and the queues stay the same for the next step."""
    usual, teacher = (normal(4, D, seed=1), torch.tensor([0, 1, 2, 3])), normal(4, C, seed=2)
    for make in (MAKERS["gml"], MAKERS["gml of arb"]):
        head = make().double()
        calls = (
            (*usual, teacher[:, 1:], ValueError, "teacher must have shape"),
            (*usual, teacher.long(), TypeError, "teacher must"),
            (usual[0], usual[1] + 1, teacher, IndexError, "target must be"),
        )
        for number, (*wrong, kind, word) in enumerate(calls):
            features, target, taught = wrong if rank == number % world else (*usual, teacher)
            bad = number % world
            with pytest.raises(
                kind if rank == bad else RankError,
                match=word if rank == bad else f"rank {bad}: {kind.__name__}: {word}",
            ):
                head(features, target, teacher=taught)
            head(*usual, teacher=teacher).backward()
        assert (head.queue.labels >= 0).any()


def quiet_modes(rank: int, world: int, group: Any) -> None:
    """In evaluation, with batch_group=None, and in a group of one nothing is exchanged: a rank may call alone."""
    if rank == 0:
        usual, single = (normal(4, D, seed=1), torch.tensor([0, 1, 2, 3])), {"batch_group": None}
        for make in MAKERS.values():
            make().double().eval()(*usual)
        bcl().double().eval()(usual[0].repeat(2, 1), usual[1])
        offset(**single).double()(*usual)
        losses.LADELoss(COUNTS, **single)(normal(4, C, seed=1), usual[1])
    alone_here = [dist.new_group([one]) for one in range(world)][rank]
    losses.ARBLoss(counts="batch", batch_group=alone_here)(normal(4 + rank, C, seed=1), torch.zeros(4 + rank).long())


def kept(rank: int, world: int, group: Any) -> None:
    """Copies share a process group, a pickle leaves it out; "all" and None stay; others are refused."""
    loss = losses.LADELoss(COUNTS, batch_group=group)
    assert copy.deepcopy(loss).batch_group is group
    for given in (group, "all", None):
        loss.batch_group = given
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert loaded.batch_group == (None if given is group else given)
        if given is group:
            with pytest.raises(ValueError, match="batch_group must be given again"):
                loaded(normal(4, C, seed=1), torch.tensor([0, 1, 2, 3]))
            loaded.batch_group = group
        loaded(normal(4, C, seed=1), torch.tensor([0, 1, 2, 3]))
    for wrong in ("own", 3):
        with pytest.raises(ValueError, match="batch_group must be"):
            losses.LADELoss(COUNTS, batch_group=wrong)
        with pytest.raises(ValueError, match="batch_group must be"):
            lade_regularizer(normal(4, C, seed=1), torch.tensor([0, 1, 2, 3]), COUNTS, batch_group=wrong)


if __name__ == "__main__":
    main([told, of_one_rank, quiet_modes, kept])
