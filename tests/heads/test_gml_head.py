"""The head of GML and its queue, a batch after another, against lists of keys a class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from published_views import class_mean_cross_entropy as dense
from published_views import unit
from tolerances import assert_close
from torch import Tensor

from lt_kernels import heads, losses
from lt_kernels.heads.queue import ClassQueue, places

pytestmark = pytest.mark.usefixtures("kernels")

N, C, D, E = 8, 5, 6, 3
COUNTS = torch.tensor([50.0, 4.0, 30.0, 9.0, 7.0], dtype=torch.float64)
PRIOR = COUNTS / COUNTS.sum()
TARGET = torch.tensor([0, 0, 2, 1, 3, 0, 2, 4])


class Model:
    """The queue as lists, a class at a time, and the head's loss from it."""

    def __init__(self, head: heads.GMLHead, room: list[int]) -> None:
        self.head, self.room = head, room
        self.kept: list[list[tuple[int, Tensor]]] = [[] for _ in room]
        self.following, self.number = [0] * len(room), 0

    def enter(self, features: Tensor, target: Tensor) -> list[tuple[int, int]]:
        """Write each row over the oldest of its class; where each went, or (-1, -1)."""
        where, arrived = [], [0] * len(self.room)
        for row, label in zip(features, target.tolist(), strict=True):
            if arrived[label] == self.room[label]:
                where.append((-1, -1))
                continue
            place = (self.following[label] + arrived[label]) % self.room[label]
            self.kept[label] = [one for one in self.kept[label] if one[0] != place] + [(place, row)]
            arrived[label] += 1
            where.append((label, place))
        self.following = [(a + b) % r for a, b, r in zip(self.following, arrived, self.room, strict=True)]
        return where

    def loss(self, classify: Any, first: Tensor, last: Tensor, target: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The loss of a batch that has entered."""
        where = self.enter(first.detach(), target)
        held = [((label, place), row) for label, kept in enumerate(self.kept) for place, row in kept]
        index = {place: number for number, (place, _) in enumerate(held)}
        own = torch.tensor([index.get(place, -1) for place in where])
        key_class = torch.tensor([place[0] for place, _ in held])

        def project(rows: Tensor) -> Tensor:
            return unit(rows @ state["projection.weight"].T + state["projection.bias"])

        query, key = project(last), project(torch.stack([row for _, row in held]))
        log_t = state["loss.log_temperature"]
        first_term = dense(query / log_t.detach().exp(), key, target, key_class, PRIOR, None)
        second = dense(query.detach() / log_t.exp(), key.detach(), target, key_class, PRIOR, own)
        return classify(unit(first) @ unit(state["weight"]).T, target) + first_term + second


def sup(cosine: Tensor, target: Tensor) -> Tensor:
    """Logit adjustment of cosines times 30."""
    return F.cross_entropy(30 * cosine + PRIOR.log(), target)


def dbm(cosine: Tensor, target: Tensor) -> Tensor:
    """DBM with a scale of 20 and K = 0.2."""
    own = cosine.gather(1, target[:, None])
    hard = (cosine.argmax(1) != target).double()[:, None]
    margin = (0.2 * COUNTS.min() / COUNTS)[target][:, None]
    turned = torch.cos(own.acos() + margin * (1 + hard * (1 - own) / 2))
    return F.cross_entropy(20 * torch.where(F.one_hot(target, C).bool(), turned, cosine), target)


BASES = {
    "sup": (lambda: losses.LogitAdjustmentLoss(COUNTS), sup),
    "dbm": (lambda: losses.DBMLoss(COUNTS, 0.2, scale=20.0), dbm),
}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("base", BASES)
def test_head_over_batches(base: str, views: int) -> None:
    """Four batches: the queue fills and turns over, one class is never seen, another has more rows than places."""
    make, formula = BASES[base]
    head = heads.GMLHead(D, C, losses.GMLLoss(make(), COUNTS, temperature=0.3), out_features=E, queue=14).double()
    model = Model(head, head.queue.count.tolist())
    for step in range(4):
        target = torch.tensor([[0, 2, 2, 3, 0], [4, 4, 4, 4, 4], [0, 0, 3, 4, 0], [2, 2, 2, 3, 0]])[step]
        features = normal(5 * views, D, seed=830 + step).requires_grad_()
        leaf = features.detach().clone().requires_grad_()
        state = {name: part.detach().clone().requires_grad_() for name, part in head.named_parameters()}
        value, expected = head(features, target), model.loss(formula, leaf[:5], leaf[-5:], target, state)
        head.zero_grad()
        value.backward()
        expected.backward()
        assert_close(value, expected)
        assert_close(features.grad, leaf.grad, name="features")
        for name, part in head.named_parameters():
            assert_close(part.grad, state[name].grad, name=name)
    assert (head.queue.labels == 1).sum() == 0
    assert_close(head(normal(3, D, seed=840)), unit(normal(3, D, seed=840)) @ unit(head.weight.detach()).T)


def test_teacher_of_the_head() -> None:
    """A teacher's cosines, in the units of what the head predicts."""
    loss = losses.GMLLoss(losses.LogitAdjustmentLoss(COUNTS), COUNTS, distillation_weight=0.5)
    head = heads.GMLHead(D, C, loss, out_features=E, queue=14, scale=7.0).double().eval()
    features, teacher = normal(N, D, seed=841), normal(N, C, seed=842).tanh()
    ours, theirs = (7 * head(features) / 4).softmax(1), (7 * teacher / 4).softmax(1)
    more = head(features, TARGET, teacher=teacher) - head(features, TARGET)
    assert_close(more, (0.5 * 16 * (theirs * (theirs / ours).log()).sum(1).mean()).detach())


def fresh(queue: int = 20, **options: Any) -> heads.GMLHead:
    """A head and its loss."""
    return heads.GMLHead(D, C, losses.GMLLoss(losses.LogitAdjustmentLoss(COUNTS), COUNTS), queue=queue, **options)


def test_evaluation_changes_nothing_and_sees_the_same() -> None:
    head = fresh()
    features = normal(N, D, seed=843, dtype=torch.float32)
    head(normal(N, D, seed=844, dtype=torch.float32), TARGET)
    before = copy.deepcopy(head.state_dict())
    seen = head.eval()(features, TARGET)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert torch.equal(head.train()(features, TARGET), seen)
    assert not torch.equal(head.queue.features, before["queue.features"])


def test_the_queue_changes_out_of_place() -> None:
    """A graph of one batch stays valid while the next one enters."""
    head = fresh()
    first = head(normal(N, D, seed=845, dtype=torch.float32), TARGET)
    head(normal(N, D, seed=846, dtype=torch.float32), TARGET)
    first.backward()


def test_a_run_can_be_resumed() -> None:
    head, other = fresh(), fresh()
    batches = [normal(N, D, seed=seed, dtype=torch.float32) for seed in (847, 848, 849)]
    head(batches[0], TARGET)
    other.load_state_dict(head.state_dict())
    for batch in batches[1:]:
        assert torch.equal(head(batch, TARGET), other(batch, TARGET))
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in other.state_dict().items())


def test_places() -> None:
    """20 places, 2 for each class and 10 by the prior .5 .04 .3 .09 .07: ends are rounded up."""
    assert places(PRIOR, 20, 2).tolist() == [7, 3, 5, 3, 2]
    assert places(torch.tensor([1.0, 0.0]), 4, 1).tolist() == [3, 1]
    assert places(torch.ones(3), 3, 1).tolist() == [1, 1, 1]
    for size in (4096, 16384):
        room = places(torch.rand(1000, dtype=torch.float64), size, 3)
        assert room.sum() == size
        assert room.min() >= 3


def test_the_oldest_of_a_class_leaves() -> None:
    queue = ClassQueue(1, torch.tensor([0.5, 0.5]), 6, 1)
    for value in range(4):
        held, own = queue.after(torch.full((1, 1), float(value + 1)), torch.tensor([1]))
        assert own.tolist() == [3 + value % 3]
        queue.keep(held)
    assert queue.features[:, 0].tolist() == [0, 0, 0, 4, 2, 3]
    assert queue.labels.tolist() == [-1, -1, -1, 1, 1, 1]
    held, own = queue.after(torch.arange(5.0)[:, None], torch.tensor([0, 0, 0, 0, 1]))
    assert own.tolist() == [0, 1, 2, -1, 4]
    assert held.features[:, 0].tolist() == [0, 1, 2, 4, 4, 3]


def test_tables_keep_their_digits() -> None:
    head = fresh().double().half().float()
    assert_close(head.loss.log_prior, PRIOR.log())
    assert head.queue.labels.dtype == torch.int64
    head(normal(N, D, seed=850, dtype=torch.float32), TARGET)
    head.reset_parameters()
    assert (head.queue.labels == -1).all()
    assert head.queue.following.sum() == 0


def test_published_defaults() -> None:
    head = fresh(4096)
    loss = head.loss
    factors = (loss.classification_weight, loss.contrastive_weight, loss.distillation_weight)
    assert factors == (1.0, 1.0, 0.0)
    assert (head.scale, head.projection.out_features, loss.distillation_temperature) == (30.0, 32, 4.0)
    assert_close(loss.log_temperature.exp().detach(), torch.tensor([0.1]))


def test_half_precision_features() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fresh()(normal(N, D, seed=852).bfloat16(), TARGET)
    assert value.dtype == torch.float32
    assert value.isfinite()


ERRORS = [
    ("loss", lambda: heads.GMLHead(D, C, losses.LogitAdjustmentLoss(COUNTS))),  # type: ignore[arg-type]
    ("class_counts", lambda: heads.GMLHead(D, C + 1, fresh().loss)),
    ("queue", lambda: fresh(9)),
    ("per_class", lambda: fresh(20, per_class=0)),
    ("out_features", lambda: fresh(20, out_features=0)),
    ("features", lambda: fresh()(torch.randn(N, E), TARGET)),
    ("target", lambda: fresh()(torch.randn(N, D), TARGET + 1)),
    ("target", lambda: fresh()(torch.randn(N - 1, D), TARGET)),
]


@pytest.mark.parametrize("names, call", ERRORS)
def test_errors(names: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\b{names}\b"):
        call()
