"""What functions refuse of DTensors, by name and placement, and what is told on all ranks: one rank of several."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from doors import BIAS, COUNTS, FEATURES, LAM, ROWS, TABLE, TARGET, WEIGHT, WHOLE, C, D, N, placed
from helpers import normal
from launch import main, mesh_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from lt_kernels.distributed import RankError
from lt_kernels.functional import (
    MixedTarget,
    lade_regularizer,
    linear_cross_entropy,
    logit_weight_repulsion,
    offset_cross_entropy,
)
from lt_kernels.regularizers import CenterLoss

LOGITS = FEATURES @ WEIGHT.T
PLAIN = r"must be a DTensor .*got a plain tensor"
ONE = [Shard(1)]
Call = Callable[[Any], Any]  # of a rank's DTensors: rows, labels, held, ...
WRONG: list[tuple[str, type[Exception], Call]] = [
    (
        r"logits must have placements .*got \[Shard\(dim=1\)\]",
        ValueError,
        lambda t: offset_cross_entropy(t.put(LOGITS, ONE), TARGET),
    ),
    (r"logits must have placements .*got \[Partial", ValueError, lambda t: offset_cross_entropy(t.partial, TARGET)),
    (
        r"logits must have placements .*of shape \[6\]",
        ValueError,
        lambda t: offset_cross_entropy(t.put(LOGITS[0], ROWS), TARGET[0]),
    ),
    (f"target {PLAIN}", TypeError, lambda t: offset_cross_entropy(t.rows, TARGET)),
    (f"lam {PLAIN}", TypeError, lambda t: offset_cross_entropy(t.rows, MixedTarget(t.labels, t.labels, LAM))),
    (f"logits {PLAIN}", TypeError, lambda t: offset_cross_entropy(LOGITS, t.labels)),
    (
        r"target must have placements \[Shard.*got \[Replicate",
        ValueError,
        lambda t: offset_cross_entropy(t.rows, t.put(TARGET, WHOLE)),
    ),
    (
        r"target must be on the mesh of the others",
        ValueError,
        lambda t: offset_cross_entropy(t.rows, placed(TARGET, t.other, [Shard(0), Replicate()])),
    ),
    (
        r"weight must have placements \[Replicate.*got \[Shard",
        ValueError,
        lambda t: offset_cross_entropy(t.rows, t.labels, t.put(TABLE.exp(), ROWS)),
    ),
    (
        f"offset {PLAIN}",
        TypeError,
        lambda t: offset_cross_entropy(t.rows, t.labels, offset=normal(N, C, seed=1)),
    ),
    (
        r"input must have placement Replicate\(\) over the ranks",
        ValueError,
        lambda t: linear_cross_entropy(t.put(FEATURES, ROWS), t.held, t.labels),
    ),
    (
        r"linear_weight must have placements .*got \[Shard\(dim=1\)\]",
        ValueError,
        lambda t: linear_cross_entropy(FEATURES, t.put(WEIGHT, ONE), TARGET),
    ),
    (f"input {PLAIN}", TypeError, lambda t: linear_cross_entropy(FEATURES, t.put(WEIGHT, WHOLE), TARGET)),
    (
        r"linear_bias must be a DTensor as linear_weight is, got a plain tensor",
        TypeError,
        lambda t: linear_cross_entropy(FEATURES, t.held, TARGET, linear_bias=BIAS),
    ),
    (
        r"linear_bias must have placements \[Shard.*got \[Replicate",
        ValueError,
        lambda t: linear_cross_entropy(FEATURES, t.held, TARGET, linear_bias=t.put(BIAS, WHOLE)),
    ),
    (
        r"group must be None with DTensors",
        ValueError,
        lambda t: linear_cross_entropy(FEATURES, t.held, TARGET, group=t.group),
    ),
    (r"linear_weight must have .*got \[Shard", ValueError, lambda t: logit_weight_repulsion(t.put(WEIGHT, ONE))),
    (
        r"logits must be a plain tensor here, got a DTensor with placements \[Shard",
        TypeError,
        lambda t: lade_regularizer(t.rows, TARGET, COUNTS),
    ),
    (
        r"features must be a plain tensor here, got a DTensor",
        TypeError,
        lambda t: CenterLoss(C, D)(t.put(FEATURES, ROWS), TARGET),
    ),
]


def refused(rank: int, world: int, group: Any) -> None:
    """What is placed otherwise is named with its placement, on every rank."""
    mesh = mesh_of(world)
    given = SimpleNamespace(
        group=group,
        other=init_device_mesh("cpu", (world, 1)),
        put=lambda value, placements: placed(value, mesh, placements),
        partial=DTensor.from_local(LOGITS, mesh, [Partial()]),
        rows=placed(LOGITS, mesh, ROWS),
        labels=placed(TARGET, mesh, ROWS),
        held=placed(WEIGHT, mesh, ROWS),
    )
    for words, kind, call in WRONG:
        with pytest.raises(kind, match=words):
            call(given)


def told(rank: int, world: int, group: Any) -> None:
    """An error on one rank of a batch, and settings that differ, are told on all; then the ranks go on in step."""
    mesh = mesh_of(world)
    rows, labels = placed(FEATURES, mesh, ROWS), placed(TARGET, mesh, ROWS)

    def right() -> None:
        exact = linear_cross_entropy(FEATURES, WEIGHT, TARGET)
        torch.testing.assert_close(linear_cross_entropy(rows, WEIGHT, labels).full_tensor(), exact)

    bad = placed(torch.cat((TARGET[:-1], torch.tensor([C]))), mesh, ROWS)
    own = bad.to_local().numel() and bool((bad.to_local() == C).any())
    with pytest.raises(IndexError if own else RankError, match="target holds 6"):
        linear_cross_entropy(rows, WEIGHT, bad)
    right()
    for name, settings in (
        ("reduction", {"reduction": "sum" if rank else "mean"}),
        ("weight", {"weight": TABLE.exp() + rank}),
        ("label_smoothing", {"label_smoothing": rank / 10}),
        ("softcap", {"softcap": 1.5 if rank else None}),
    ):
        with pytest.raises(RankError, match=f"^{name} must be the same on every rank"):
            linear_cross_entropy(rows, WEIGHT, labels, **settings)
        right()
    weights = [WEIGHT.clone().requires_grad_() for _ in range(2)]
    found = [linear_cross_entropy(rows, weight, labels) for weight in weights]
    with pytest.raises(RankError, match="every rank must make the same calls, backward included"):
        found[rank > 0].backward()
    right()


if __name__ == "__main__":
    main([refused, told])
