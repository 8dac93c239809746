"""Losses with state, or with statistics of the batch, that is dealt over ranks: run by test_batches.py, one a rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from batches import Body, cut
from helpers import classes_of, counts_of, normal
from launch import main
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lt_kernels import contrastive, heads, losses

D, C = 5, 4
COUNTS = counts_of(C, seed=1)
EVEN = {2: (4, 4), 3: (3, 3, 3)}
UNEVEN = {2: [(3, 5), (8, 0)], 3: [(2, 6, 1), (0, 5, 4)]}
STEPS = 3


def batch(step: int, rows: int, ignored: bool = False) -> tuple[Tensor, Tensor]:
    """The features and targets of all ranks; the first rows may be ignored."""
    target = classes_of(rows, C, seed=40 + step)
    return normal(rows, D, seed=30 + step), target.masked_fill(torch.arange(rows) < 4, -100) if ignored else target


def adjusted() -> losses.Loss:
    """The classification part of a loss with a second one."""
    return losses.LogitAdjustmentLoss(COUNTS)


def offset(**options: Any) -> nn.Module:
    """A head with the estimated offset."""
    return heads.LinearHead(D, C, losses.EstimatedOffsetLoss(C, D, **options), bias=False)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "offset": offset,
    "offset, autograd": lambda: offset(centers="autograd"),
    "offset, predict": lambda: offset(use="predict", center_rate=0.3),
    "arb": lambda: heads.LinearHead(D, C, losses.ARBLoss(counts="batch")),
    "arb cosine": lambda: heads.CosineHead(D, C, losses.ARBLoss(counts="batch"), scale=4.0),
    "lade": lambda: heads.LinearHead(D, C, losses.LADELoss(COUNTS)),
    "lade, sample": lambda: heads.LinearHead(
        D, C, losses.LADELoss(COUNTS, 0.7, importance="sample", classes="present")
    ),
    "gml": lambda: heads.GMLHead(D, C, losses.GMLLoss(adjusted(), COUNTS), queue=16),
    "gml of arb": lambda: heads.GMLHead(D, C, losses.GMLLoss(losses.ARBLoss(counts="batch"), COUNTS), queue=11),
}


class Model(nn.Module):
    """A backbone and a head."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = Body()
        torch.manual_seed(6)
        self.head = make().double()

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return self.head(self.body(features), target)


def alone(make: Callable[[], nn.Module]) -> Model:
    """The same model for this process alone."""
    model = Model(make)
    for part in model.modules():
        if hasattr(part, "batch_group"):
            part.batch_group = None
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's words on options that its versions have under other names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trained(model: nn.Module, step: Callable[[int], Tensor]) -> list[Tensor]:
    """The losses of some steps of gradient descent."""
    found = []
    for number in range(STEPS):
        model.zero_grad()
        loss = step(number)
        loss.backward()
        with torch.no_grad():
            for part in model.parameters():
                if part.grad is not None:
                    part -= 0.1 * part.grad
        found.append(loss.detach())
    return found


def same(model: nn.Module, whole: nn.Module, name: str) -> None:
    """Parameters, their gradients and all state are equal."""
    for (key, part), full in zip(model.named_parameters(), whole.parameters(), strict=True):
        for ours, exact in ((part, full), (part.grad, full.grad)):
            ours = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
            torch.testing.assert_close(ours, exact, msg=lambda text, key=key: f"{name}, {key}: {text}")
    for (key, buffer), full in zip(model.named_buffers(), whole.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, full[1], msg=lambda text, key=key: f"{name}, {key}: {text}")


def mean_of(values: list[Tensor], group: Any) -> list[Tensor]:
    """The means over the ranks."""
    total = torch.stack(values)
    dist.all_reduce(total, group=group)
    return list(total / dist.get_world_size(group))


def wrapped(model: Model, how: str, world: int) -> nn.Module:
    """The model under data parallelism."""
    if how == "fsdp":
        return fully_shard(model, mesh=dist.init_device_mesh("cpu", (world,)))
    return DistributedDataParallel(model, broadcast_buffers=how == "ddp", find_unused_parameters=True)


def data_parallel(rank: int, world: int, group: Any) -> None:
    """Steps of DistributedDataParallel, whose buffers are broadcast or not, and of fully_shard: as one process's."""
    sizes = EVEN[world]
    for name, make in MAKERS.items():
        whole = alone(make)
        exact = trained(whole, lambda step, whole=whole: whole(*batch(step, sum(sizes))))
        for how in ("ddp", "ddp without broadcasts", "fsdp"):
            model, said = Model(make), f"{name}, {how}"
            with quiet():
                outer = wrapped(model, how, world)

                def step(number: int, outer: nn.Module = outer) -> Tensor:
                    return outer(*(cut(rank, sizes, one) for one in batch(number, sum(sizes))))

                found = trained(outer, step)
            for ours, value in zip(mean_of(found, group), exact, strict=True):
                torch.testing.assert_close(ours, value, msg=lambda text, said=said: f"{said}: {text}")
            same(model, whole, said)


def scaled(rank: int, world: int, group: Any) -> None:
    """Where ranks have different numbers of rows, or none, the factor world n / N makes the averages the whole's."""
    for name, make in MAKERS.items():
        for sizes in UNEVEN[world]:
            for ignored in (False, True)[: 1 if "gml" in name else 2]:
                if "gml" in name and 0 in sizes:  # a projection of no row
                    continue
                whole, model = alone(make), Model(make)
                rows = [batch(step, sum(sizes), ignored) for step in range(STEPS)]
                trained(whole, lambda step, whole=whole, rows=rows: whole(*rows[step]))
                with quiet():
                    outer = wrapped(model, "ddp", world)

                    def step(number: int, sizes: Any = sizes, outer: Any = outer, rows: Any = rows) -> Tensor:
                        features, target = rows[number]
                        own = cut(rank, sizes, target)
                        counted = (own != -100).sum().double() / (target != -100).sum()
                        return world * counted * outer(cut(rank, sizes, features), own)

                    trained(outer, step)
                same(model, whole, f"{name}, {sizes}, {ignored}")


def bcl(out: int = 128) -> nn.Module:
    """A contrastive head whose projection has no batch norm, of which torch has none over ranks on a CPU."""
    head = heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(adjusted()), out_features=out)
    head.projection[1] = nn.Identity()
    return head


def contrasted(rank: int, world: int, group: Any) -> None:
    """The keys are the views of all ranks, in the order of one process's; gradients average to the whole's."""
    whole, model, views = alone(bcl), Model(bcl), 2
    for sizes in (EVEN[world], UNEVEN[world][0]):
        rows = sum(sizes)
        both, target = normal(views, rows, D, seed=50), classes_of(rows, C, seed=51)
        own = torch.stack([cut(rank, sizes, one) for one in both])
        for one in (whole, model):
            one.zero_grad()
        exact = whole(both.flatten(0, 1), target)
        exact.backward()
        with quiet():
            outer = wrapped(model, "ddp", world)  # whose hooks average while it lives
        loss = world * sizes[rank] / rows * outer(own.flatten(0, 1), cut(rank, sizes, target))
        loss.backward()
        torch.testing.assert_close(mean_of([loss.detach()], group)[0], exact.detach())
        for (key, part), full in zip(model.named_parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(part.grad, full.grad, msg=lambda text, key=key: f"{key}: {text}")
    prototypes = normal(C, D, seed=52)
    for reduction in ("none", "sum"):
        ours = contrastive.balanced_contrastive(
            own.flatten(0, 1), prototypes, cut(rank, sizes, target), reduction=reduction, batch_group=group
        )
        exact = contrastive.balanced_contrastive(both.flatten(0, 1), prototypes, target, reduction="none")
        exact = torch.cat([cut(rank, sizes, one) for one in exact.reshape(views, rows)])
        torch.testing.assert_close(ours, exact if reduction == "none" else exact.sum())


def compiled(rank: int, world: int, group: Any) -> None:
    """Under torch.compile the exchange stays outside of the graph: same losses, gradients and state."""
    for name in ("offset", "lade", "arb", "gml"):
        model, other = Model(MAKERS[name]), Model(MAKERS[name])
        step = torch.compile(other, backend="aot_eager")
        features, target = batch(rank, 4)
        with quiet():
            for call in (model, step):
                call(features, target).backward()
        same(other, model, name)


if __name__ == "__main__":
    main([data_parallel, scaled, contrasted, compiled])
