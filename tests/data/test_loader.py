"""The orders of an epoch, and the loader that resumes at the exact batch."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from lt_kernels.data import DealtLoader, ResumableLoader
from lt_kernels.data.samplers import (
    ClassBalanced,
    ProgressivelyBalanced,
    ResumableSampler,
    Sequential,
    Shuffled,
    make_order,
)


def loader(samples: int = 23, batch: int = 4, **options) -> ResumableLoader:
    rows = torch.arange(samples)
    return ResumableLoader((rows, 10 * rows), batch, **options)


def drawn(batches) -> list[int]:
    return [int(row) for inputs, _ in batches for row in inputs]


def test_an_epoch_is_every_sample_once_in_an_order_of_seed_and_epoch():
    one = loader(seed=3)
    first, second = drawn(one), drawn(one)
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert first == drawn(loader(seed=3))
    assert first != drawn(loader(seed=4))
    other = loader(seed=3)
    other.set_epoch(1)
    assert drawn(other) == second


def test_inputs_and_targets_stay_together_and_the_last_batch_is_short():
    batches = list(loader())
    assert all(torch.equal(10 * inputs, target) for inputs, target in batches)
    assert [len(target) for _, target in batches] == [4, 4, 4, 4, 4, 3]
    assert len(loader()) == 6
    short = loader(drop_last=True)
    assert [len(target) for _, target in short] == [4] * 5
    assert len(short) == 5


def test_without_shuffle_the_samples_come_as_they_lie():
    plain = loader(shuffle=False)
    assert drawn(plain) == drawn(plain) == list(range(23))


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 6])
@pytest.mark.parametrize("options", [{}, dict(rank=1, world_size=2), dict(drop_last=True), dict(shuffle=False)])
def test_resume_at_any_batch_is_exact(stop, options):
    whole = loader(seed=5, **options)
    whole.set_epoch(2)
    stop = min(stop, len(whole))
    running = iter(whole)
    for _ in range(stop):
        next(running)
    state = whole.state_dict()
    expected = drawn(running) or drawn(whole)  # the rest of this epoch, or the next one where nothing is left

    resumed = loader(seed=5, **options)
    lazy = iter(resumed)  # a trainer makes the iterator before it loads the state, and sets the epoch after
    resumed.load_state_dict(state)
    if stop < len(whole):
        resumed.sampler.set_epoch(2)
    assert len(resumed) == len(whole)
    assert drawn(lazy) == expected
    assert drawn(resumed) == drawn(whole)


def test_a_state_from_the_end_of_an_epoch_goes_on_with_the_next():
    whole = loader(seed=1)
    first = drawn([batch for batch, _ in zip(whole, range(6))])
    ended = {**whole.state_dict(), "position": 6}
    resumed = loader(seed=1)
    resumed.load_state_dict(ended)
    resumed.set_epoch(1)
    other = loader(seed=1)
    other.load_state_dict(ended)
    second = drawn(resumed)
    assert second == drawn(other) != first


def test_an_epoch_that_was_left_early_starts_again():
    one = loader(seed=2)
    begun = [next(iter(one)) for _ in range(3)]
    assert drawn(begun[:1]) == drawn(begun[1:2]) == drawn(begun[2:])
    one.set_epoch(0)
    assert drawn(one)[:4] == drawn(begun[:1])


def test_the_state_is_plain_numbers():
    one = loader()
    next(iter(one))
    assert one.state_dict() == dict(epoch=0, position=1, num_samples=23, batch_size=4, world_size=1)


@pytest.mark.parametrize("name, other", [("num_samples", dict(samples=24)), ("batch_size", dict(batch=5))])
def test_a_state_of_another_layout_is_refused(name, other):
    with pytest.raises(ValueError, match=name):
        loader(**other).load_state_dict(loader().state_dict())


@pytest.mark.parametrize("samples, ranks", [(23, 2), (23, 4), (2, 5), (8, 4)])
def test_ranks_share_an_epoch(samples, ranks):
    parts = [drawn(loader(samples, rank=rank, world_size=ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {-(-samples // ranks)}
    every = Counter(row for part in parts for row in part)
    assert set(every) == set(range(samples))
    exact = [drawn(loader(samples, rank=rank, world_size=ranks, shuffle=False)) for rank in range(ranks)]
    assert sorted(row for part in exact for row in part) == list(range(samples))
    dropped = [drawn(loader(samples, 1, rank=rank, world_size=ranks, drop_last=True)) for rank in range(ranks)]
    assert {len(part) for part in dropped} == {samples // ranks}
    assert max(Counter(row for part in dropped for row in part).values(), default=1) == 1


def test_global_random_state_is_neither_used_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(loader(seed=9))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert drawn(loader(seed=9)) == first


def test_class_balanced_order():
    target = torch.tensor([0] * 900 + [2] * 90 + [3] * 10)
    order = ClassBalanced(target, seed=1)
    rows = torch.cat([order(epoch) for epoch in range(12)])
    share = target[rows].bincount(minlength=4) / len(rows)
    assert len(order(0)) == 1000
    assert torch.allclose(share, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]), atol=0.02)
    assert len(rows[target[rows] == 3].unique()) == 10  # each of the tail's samples
    assert torch.equal(order(3), ClassBalanced(target, seed=1)(3))
    balanced = ResumableLoader((torch.arange(1000), target), 50, order=order)
    assert torch.equal(torch.cat([inputs for inputs, _ in balanced]), order(0))


def test_a_source_that_can_read_ahead_is_told_the_next_batch():
    class Source(list):
        device = torch.device("cpu")

        def index_select(self, dimension, rows):
            return torch.tensor([self[int(row)] for row in rows])

        def prefetch(self, rows):
            self.told.append(rows.tolist())

    source = Source(range(5))
    source.told = []
    batches = [rows.tolist() for (rows,) in ResumableLoader((source,), 2, shuffle=False)]
    assert batches == [[0, 1], [2, 3], [4]]
    assert source.told == [[2, 3], [4], []]


def test_square_root_order():
    target = torch.tensor([0] * 900 + [2] * 100 + [3] * 4)
    rows = torch.cat([make_order("sqrt", target, 1, 1)(epoch) for epoch in range(20)])
    share = target[rows].bincount(minlength=4) / len(rows)
    assert torch.allclose(share, torch.tensor([30.0, 0.0, 10.0, 2.0]) / 42, atol=0.01)


def test_progressively_balanced_order():
    target = torch.tensor([0] * 900 + [2] * 90 + [3] * 10)
    order = make_order("progressive", target, 1, 5)
    for epoch, head in ((0, 0.9), (2, (0.9 + 1 / 3) / 2), (4, 1 / 3), (7, 1 / 3)):
        share = target[order(epoch)].bincount(minlength=4) / 1000
        assert abs(float(share[0]) - head) < 0.05
        assert share[1] == 0
    assert torch.equal(order(1), ProgressivelyBalanced(target, 5, 1)(1))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: make_order("tail", torch.tensor([0, 1]), 0, 1), "sampler must be one of .*'tail'"),
        (lambda: ClassBalanced(torch.tensor([0, 1]), power=2), "power must be in 0..1, got 2"),
        (lambda: ProgressivelyBalanced(torch.tensor([0, 1]), 0), "epochs must be at least 1, got 0"),
    ],
)
def test_a_bad_order_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_shuffled_is_uniform_enough_over_seeds_and_epochs():
    first = torch.stack([Shuffled(5, seed)(epoch)[0] for seed in range(20) for epoch in range(20)])
    assert first.bincount(minlength=5).min() > 50


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(batch=0), "batch_size"),
        (dict(rank=2, world_size=2), "rank"),
        (dict(world_size=0), "world_size"),
        (dict(seed=-1), "seed"),
        (dict(samples=0), "data"),
    ],
)
def test_loader_names_the_bad_argument(options, name):
    with pytest.raises(ValueError, match=name):
        loader(**options)


def test_loader_refuses_tensors_of_different_lengths():
    with pytest.raises(ValueError, match=r"data .* \[3, 4\]"):
        ResumableLoader((torch.zeros(3), torch.zeros(4)), 2)


def test_sampler_refuses_a_negative_epoch():
    with pytest.raises(ValueError, match="epoch"):
        ResumableSampler(Sequential(3), 3, 1).set_epoch(-1)


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (2, 1), (3, 1), (1, 3), (4, 2)])
def test_batches_are_dealt_without_loss_or_repetition(world: int, micro: int) -> None:
    """Over ranks and micro-batches: each batch is that of one process, cut into parts that differ by one sample."""
    order = Shuffled(23, seed=3)
    whole = [rows for (rows,) in ResumableLoader([torch.arange(23)], 10, order=order)]
    sizes = {"world_size": world, "micro_batches": micro}
    ranks = [list(DealtLoader([torch.arange(23)], 10, order=order, rank=rank, **sizes)) for rank in range(world)]
    assert [len(part) for part in ranks] == [3 * micro] * world
    for number, batch in enumerate(whole):
        parts = [ranks[rank][number * micro + one] for one in range(micro) for rank in range(world)]
        assert torch.equal(torch.cat([rows for rows, _ in parts]), batch)
        assert {size for _, size in parts} == {len(batch)}
        lengths = [len(rows) for rows, _ in parts]
        assert max(lengths) - min(lengths) <= 1


def test_a_dealt_loader_goes_on_with_other_ranks_and_micro_batches() -> None:
    """Its state, taken after a batch's last part, is that of one process."""
    order = Shuffled(23, seed=3)
    first = DealtLoader([torch.arange(23)], 10, order=order, rank=1, world_size=2, micro_batches=2)
    parts = iter(first)
    assert [len(rows) for rows, _ in itertools.islice(parts, 2)] == [3, 2]
    expected = list(ResumableLoader([torch.arange(23)], 10, order=order))[1:]
    for micro in (1, 2):
        later = DealtLoader([torch.arange(23)], 10, order=order, micro_batches=micro)
        later.load_state_dict(first.state_dict())
        rest = list(later)
        assert len(rest) == 2 * micro
        assert torch.equal(torch.cat([rows for rows, _ in rest]), torch.cat([rows for (rows,) in expected]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"world_size": 0}, "world_size and micro_batches must be at least 1, got 0 and 1"),
        ({"micro_batches": 0}, "world_size and micro_batches must be at least 1, got 1 and 0"),
        ({"rank": 2, "world_size": 2}, "rank must be at least 0 and below world_size = 2, got 2"),
    ],
)
def test_dealing_that_cannot_be_is_named(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DealtLoader([torch.arange(5)], 2, order=Sequential(5), **sizes)
