"""Plain heads and losses under DistributedDataParallel and fully_shard: run by test_ranks.py, one a rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from every_loss import BARE, HEADS, PLAIN, C, D, tables
from helpers import classes_of, normal
from launch import main
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from lt_kernels import functional, heads, losses

N = 6  # rows of a rank
# torch 2.11 writes buffers so that a backward pass refuses them as changed, those of torch's own losses too.
UNNOTICED = {"broadcast_buffers": False} if torch.__version__ < "2.12" else {}
NO_IGNORE = ("linear lade", "linear offset", "bcl", "gml", "ncl")  # every row counts in their second terms


def linear(loss: losses.Loss) -> nn.Module:
    """A head for a loss of logits or cosines."""
    return heads.CosineHead(D, C, loss) if loss.input_kind == "cosine" else heads.LinearHead(D, C, loss)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda make=make: linear(make()) for name, make in {**PLAIN, **BARE}.items()},
    **HEADS,
}


class Model(nn.Module):
    """A backbone and a head; the same weights under the same name of a head, and statistics of this process alone."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.head = make().double()
        for part in self.head.modules():
            if hasattr(part, "batch_group"):
                part.batch_group = None
        self.body = nn.Linear(D, getattr(self.head, "experts", 1) * D).double()

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return self.head(self.body(features), target)


def batch(rank: int, ignored: bool) -> tuple[Tensor, Tensor]:
    """A rank's features and targets; rank 1 may have ignored rows only."""
    target = classes_of(N, C, seed=20 + rank)
    return normal(N, D, seed=30 + rank), torch.full_like(target, -100) if ignored and rank == 1 else target


def of_one_process(make: Callable[[], nn.Module], world: int, ignored: bool) -> dict[str, Tensor]:
    """The mean over the ranks of the gradients that each has by itself: what data parallelism promises."""
    found: dict[str, Tensor] = {}
    for rank in range(world):
        model = Model(make)
        model(*batch(rank, ignored)).backward()
        for name, part in model.named_parameters():
            grad = torch.zeros_like(part) if part.grad is None else part.grad
            found[name] = found.get(name, 0.0) + grad / world
    return found


def same(model: nn.Module, exact: dict[str, Tensor], name: str) -> None:
    """All gradients are there and equal."""
    for key, part in model.named_parameters():
        wanted = exact[key.removeprefix("module.")]
        grad = torch.zeros_like(wanted) if part.grad is None else part.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        assert torch.isfinite(grad).all(), (name, key)
        torch.testing.assert_close(grad, wanted, msg=lambda text, key=key: f"{name}, {key}: {text}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's word on a parameter that a loss does not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def data_parallel(rank: int, world: int, group: Any) -> None:
    """Every loss under DistributedDataParallel has the mean of the ranks' gradients, whatever one of them ignores."""
    for name, make in MAKERS.items():
        for ignored in (False, True)[: 1 if name in NO_IGNORE or name == "LADELoss" else 2]:
            model = DistributedDataParallel(Model(make), process_group=group, find_unused_parameters=True)
            with quiet():
                model(*batch(rank, ignored)).backward()
            same(model, of_one_process(make, world, ignored), f"{name}, {ignored}")


def as_torch(rank: int, world: int, group: Any) -> None:
    """A rank of ignored rows only has the loss NaN and the gradient 0, as F.cross_entropy: the others lose nothing."""
    model = DistributedDataParallel(Model(lambda: linear(losses.CrossEntropyLoss())), process_group=group)
    plain = Model(lambda: linear(losses.CrossEntropyLoss()))
    logits = plain.head(plain.body(batch(rank, True)[0]))
    exact, found = F.cross_entropy(logits, batch(rank, True)[1]), model(*batch(rank, True))
    torch.testing.assert_close(found, exact, equal_nan=True)
    assert bool(found.isnan()) == (rank == 1)
    found.backward()
    assert all(bool(torch.isfinite(part.grad).all()) for part in model.parameters())


def two_passes(rank: int, world: int, group: Any) -> None:
    """Two forward passes before one backward pass: what DistributedDataParallel writes into buffers spoils neither."""
    for name, make in MAKERS.items():
        if name in ("linear offset", "gml", "bcl"):  # whose own state changes, or batch norm's
            continue
        model, plain = (
            DistributedDataParallel(Model(make), process_group=group, find_unused_parameters=True, **UNNOTICED),
            Model(make),
        )
        parts = [(features[:3], target[:3]) for features, target in (batch(0, False), batch(1, False))]
        with quiet():
            for one in (model, plain):
                sum(one(*part) for part in parts).backward()
        same(model, {key: part.grad for key, part in plain.named_parameters()}, name)


def fully_sharded(rank: int, world: int, group: Any) -> None:
    """Every loss within fully_shard has the mean of the ranks' gradients too, and keeps its tables."""
    mesh = init_device_mesh("cpu", (world,))
    for name, make in MAKERS.items():
        for ignored in (False, True)[: 1 if name in NO_IGNORE or name == "LADELoss" else 2]:
            model = Model(make)
            before = tables(model.head)
            fully_shard(model.head, mesh=mesh)
            fully_shard(model, mesh=mesh)
            model(*batch(rank, ignored)).backward()
            same(model, of_one_process(make, world, ignored), f"{name}, {ignored}")
            for key, table in tables(model.head).items():
                assert torch.equal(table, before[key]), (name, key)


def mixed_precision(rank: int, world: int, group: Any) -> None:
    """Under fully_shard's bfloat16 the tables stay as they are; the loss is that of rounded weights and features."""
    mesh = init_device_mesh("cpu", (world,))
    for name, make in MAKERS.items():
        if name == "bcl":  # torch's batch norm takes no bfloat16 weights beside its float32 statistics
            continue
        model = Model(make).float()
        before = tables(model.head)
        weights = {key: part.detach().clone() for key, part in model.named_parameters()}
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for part in (model.head, model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        features, target = batch(rank, False)
        loss = model(features.float(), target)
        loss.backward()
        exact = Model(make).float()
        for key, part in exact.named_parameters():
            part.data.copy_(weights[key].bfloat16())
        hidden = exact.body.bfloat16()(features.bfloat16())
        wanted = exact.head(hidden.float(), target)
        torch.testing.assert_close(loss.float(), wanted, rtol=0.05, atol=0.05, msg=lambda text, name=name: name + text)
        for key, table in tables(model.head).items():
            assert table.dtype is before[key].dtype, (name, key)
            assert torch.equal(table, before[key]), (name, key)
        grads = [part.grad.full_tensor() for part in model.parameters() if part.grad is not None]
        assert all(bool(torch.isfinite(grad).all()) for grad in grads), name


def own_state(rank: int, world: int, group: Any) -> None:
    """Without a batch group what losses gather is this process's, and broadcasting buffers replaces it by rank 0's."""
    for sync in (True, False):
        for name in ("linear offset", "gml"):
            model = Model(HEADS[name])
            options = {} if sync else {"broadcast_buffers": False}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another word for it
                wrapped = DistributedDataParallel(model, process_group=group, find_unused_parameters=True, **options)
            for _ in range(2):
                with quiet():
                    wrapped(*batch(rank, False)).backward()
            state = model.head.loss.center_loss.centers if name == "linear offset" else model.head.queue.features
            alone = Model(HEADS[name])
            for one in (rank, rank) if not sync else (0, rank):
                alone(*batch(one, False)).backward()
            own = alone.head.loss.center_loss.centers if name == "linear offset" else alone.head.queue.features
            torch.testing.assert_close(state, own, msg=lambda text, name=name, sync=sync: f"{name}, {sync}: {text}")


def distributed_tables(rank: int, world: int, group: Any) -> None:
    """A DTensor beside plain tensors is an error, and never taken for a table that is not there."""
    mesh = init_device_mesh("cpu", (world,))
    weight, table = normal(N, D, seed=40), normal(N, seed=41)
    features, target = normal(N, D, seed=42), classes_of(N, N, seed=43)
    logits = features @ weight.T
    for placement in (Shard(0), Replicate()):
        held = distribute_tensor(table.exp(), mesh, [placement])
        for call in (
            lambda held=held: functional.offset_cross_entropy(logits, target, offset=held),
            lambda held=held: functional.offset_cross_entropy(logits, target, held),
            lambda held=held: functional.linear_cross_entropy(features, weight, target, offset=held),
            lambda held=held: functional.linear_cross_entropy(features, weight, target, weight=held),
            lambda held=held: functional.cosine_margin_cross_entropy(features, weight, target, weight=held),
            lambda held=held: losses.CrossEntropyLoss(table.exp()).evaluate(logits, target, table=held),
        ):
            with pytest.raises(TypeError, match=r"(logits|input) must be a DTensor as others are, got a plain tensor"):
                call()
    rows = distribute_tensor(weight, mesh, [Shard(0)])
    with pytest.raises(ValueError, match="group must be None with DTensors, whose mesh says the group"):
        functional.linear_cross_entropy(features, rows, target, group=group)


if __name__ == "__main__":
    main([data_parallel, as_torch, two_passes, fully_sharded, mixed_precision, own_state, distributed_tables])
