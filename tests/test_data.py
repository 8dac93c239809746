"""Imbalance profiles, the two data sets, the samplers and the loader that resumes at the exact batch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_kernels.data import READERS, LongTailedData, ResumableLoader, load
from lt_kernels.data.profiles import choose, exponential_counts, step_counts
from lt_kernels.data.samplers import ClassBalanced, ResumableSampler, Sequential, Shuffled
from lt_kernels.data.split import Blocks, draw_per_class, hold_out, text_windows, window_keys
from lt_kernels.data.words import cache_path, read_corpus, source_files

WORDS = dict(num_classes=300, max_tokens=200_000, test_per_class=4, context=2, block=40)


# profiles


def test_the_published_cifar_counts():
    assert exponential_counts(5000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    hundred = exponential_counts(500, 100, 100)
    assert (hundred[0], hundred[69], hundred[-1], sum(hundred)) == (500, 20, 5, 10847)
    assert exponential_counts(500, 100, 10)[-1] == 50
    assert 100 in exponential_counts(500, 100, 10)


def test_equal_counts_at_imbalance_one_and_a_single_class():
    assert exponential_counts(7, 4, 1) == step_counts(7, 4, 1) == [7] * 4
    assert exponential_counts(7, 1, 3) == [7]


def test_step_profile():
    assert step_counts(50, 5, 7) == [50, 50, 7, 7, 7]


@pytest.mark.parametrize("profile", [exponential_counts, step_counts])
@pytest.mark.parametrize(
    "arguments, name",
    [((0, 3, 2), "n_max"), ((5, 0, 2), "num_classes"), ((5, 3, 0.5), "imbalance"), ((5, 3, float("nan")), "imbalance")],
)
def test_profile_names_the_bad_argument(profile, arguments, name):
    with pytest.raises(ValueError, match=name):
        profile(*arguments)


@pytest.mark.parametrize("profile", [exponential_counts, step_counts])
def test_no_class_is_left_empty(profile):
    with pytest.raises(ValueError, match=r"imbalance must be at most n_max = 5"):
        profile(5, 3, 6)


def test_choose_first_and_drawn():
    target = torch.tensor([1, 0, 1, 1, 0, 2])
    assert choose(target, [1, 2, 1]).tolist() == [0, 1, 2, 5]
    drawn = choose(target.repeat(50), [10, 20, 3], seed=4)
    assert target.repeat(50)[drawn].bincount().tolist() == [10, 20, 3]
    assert len(drawn.unique()) == 33
    assert torch.equal(drawn, choose(target.repeat(50), [10, 20, 3], seed=4))
    assert not torch.equal(drawn, choose(target.repeat(50), [10, 20, 3], seed=5))
    with pytest.raises(ValueError, match=r"counts\[2\] must be in 0..1"):
        choose(target, [1, 1, 2])


# digits-lt


@pytest.mark.parametrize(
    "imbalance, counts",
    [
        (None, [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]),
        (100, [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]),
        (50, [124, 80, 51, 33, 21, 14, 9, 5, 3, 2]),
        (10, [124, 96, 74, 57, 44, 34, 26, 20, 16, 12]),
    ],
)
def test_digits_counts(imbalance, counts):
    pytest.importorskip("sklearn", reason="scikit-learn is in the [train] extra")
    data = load("digits-lt", imbalance=imbalance)
    assert data.class_counts.tolist() == counts
    assert data.test[1].bincount().tolist() == [50] * 10
    assert data.train[0].shape == (sum(counts), 1, 8, 8)
    assert abs(float(data.train[0].mean())) < 1e-5
    assert abs(float(data.train[0].std()) - 1) < 1e-5


def test_digits_are_the_real_scans_and_the_split_shares_none():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is in the [train] extra")
    data = load("digits-lt", imbalance=10, seed=3, test_per_class=30)
    pixel = data.facts["pixel_mean"], data.facts["pixel_deviation"]
    bundle = datasets.load_digits()
    known = Counter((scan.round().astype(int).tobytes(), int(y)) for scan, y in zip(bundle.images, bundle.target))
    seen = Counter()
    for images, target in (data.train, data.test):
        for image, y in zip(images, target):
            scan = ((image[0] * pixel[1] + pixel[0]) * 16).round().numpy().astype(int)
            seen[(scan.tobytes(), int(y))] += 1
    assert seen <= known  # as multisets: no scan is used twice
    assert data.test[1].bincount().tolist() == [30] * 10
    assert data.class_counts[0] == 144


def test_digits_seed_draws_other_samples():
    pytest.importorskip("sklearn", reason="scikit-learn is in the [train] extra")
    first, again, other = (load("digits-lt", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test[0], again.test[0])
    assert torch.equal(first.train[0], again.train[0])
    assert not torch.equal(first.test[0], other.test[0])


@pytest.mark.parametrize("options, name", [(dict(imbalance=0.5), "imbalance"), (dict(test_per_class=174), "test_per")])
def test_digits_bad_options(options, name):
    pytest.importorskip("sklearn", reason="scikit-learn is in the [train] extra")
    with pytest.raises(ValueError, match=name):
        load("digits-lt", **options)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"lt-kernels\[train\]"):
        load("digits-lt")


# stdlib-words


@pytest.fixture(scope="module")
def words_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def words(words_cache) -> LongTailedData:
    return load("stdlib-words", cache_dir=words_cache, **WORDS)


def rows_of(part) -> set[tuple[int, ...]]:
    return {(*inputs, target) for inputs, target in zip(part[0].tolist(), part[1].tolist())}


def test_words_test_set_is_balanced_and_every_class_can_be_learned(words):
    assert words.test[1].bincount().tolist() == [WORDS["test_per_class"]] * WORDS["num_classes"]
    assert words.train[0].shape[1] == words.test[0].shape[1] == 2 * WORDS["context"]
    assert int(words.class_counts.min()) >= WORDS["test_per_class"]
    assert int(words.train[0].max()) < words.num_words == WORDS["num_classes"] + 2


def test_words_no_window_is_in_both_parts(words):
    assert not rows_of(words.train) & rows_of(words.test)
    assert words.facts["train_windows_equal_to_test_removed"] > 0  # there was something to remove


def test_words_no_token_is_in_both_parts():
    """Replace the tokens by their positions: then two windows that share a number share a token."""
    from lt_kernels.data.words import separate

    rng = np.random.default_rng(0)
    starts = np.array([0, 700, 703, 5000, 20000])
    target = rng.integers(0, 12, 20000).astype(np.uint16)
    blocks = Blocks.cut(starts, 16, 3)
    windows = text_windows(target, starts, 3, 11)
    held = rng.random(blocks.num_blocks) < 0.3
    made = dict(target=target, starts=starts, held=held, words=np.array(list("abcdefghij")), passed=np.array(0))
    train, test, _ = separate(made, windows, need=6, context=3, block=16, seed=0)
    tokens = text_windows(np.arange(20000), starts, 3, -1)
    assert len(test) == 60
    assert set(tokens[train].flatten()) & set(tokens[test].flatten()) <= {-1}
    assert len(train) > 5000


def test_words_are_the_sources_words(words):
    ids, starts, vocabulary = read_corpus(source_files(), WORDS["max_tokens"])
    assert len(ids) == starts[-1] == WORDS["max_tokens"] == words.facts["tokens"]
    frequent = [vocabulary[i] for i in np.argsort(-np.bincount(ids), kind="stable")[:50]]
    assert set(frequent) <= set(words.class_names)
    assert words.class_names[0] == frequent[0]
    text = [vocabulary[i] for i in ids]
    places = {tuple(text[i - 2 : i + 3]) for i in range(2, len(text) - 2)}
    for inputs, target in zip(words.test[0][:200].tolist(), words.test[1][:200].tolist()):
        if max(inputs) < words.num_classes:
            names = [words.class_names[i] for i in inputs]
            assert (*names[:2], words.class_names[target], *names[2:]) in places


def test_words_reading_keeps_letters_only(tmp_path):
    (tmp_path / "a.py").write_text("def _f1(X): return 'Ünï'")
    (tmp_path / "b.py").write_text("x  # f")
    ids, starts, vocabulary = read_corpus([tmp_path / "a.py", tmp_path / "b.py"], None)
    assert [vocabulary[i] for i in ids] == ["def", "f", "x", "return", "n", "x", "f"]
    assert starts.tolist() == [0, 5, 7]
    assert len(read_corpus([tmp_path / "a.py", tmp_path / "b.py"], 3)[0]) == 3


def test_words_cache_gives_the_same_data(words, words_cache):
    kept = list(words_cache.iterdir())
    again = load("stdlib-words", cache_dir=words_cache, **WORDS)
    assert list(words_cache.iterdir()) == kept
    assert len(kept) == 1
    assert kept[0].name.startswith("stdlib-words-")
    assert torch.equal(words.train[0], again.train[0])
    assert torch.equal(words.test[0], again.test[0])
    assert words.class_names == again.class_names
    assert words.facts == again.facts


def test_words_seed_draws_other_windows_of_the_same_text(words, words_cache):
    other = load("stdlib-words", seed=1, cache_dir=words_cache, **WORDS)
    assert other.class_names == words.class_names
    assert other.facts["test_blocks"] == words.facts["test_blocks"]
    assert not torch.equal(other.test[0], words.test[0])


def test_words_cache_name_depends_on_every_setting(tmp_path):
    files = source_files()[:3]
    names = {cache_path(tmp_path, files, settings) for settings in [(1, 2), (1, 3), (1, None)]}
    names.add(cache_path(tmp_path, files[:2], (1, 2)))
    assert len(names) == 4


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path(None, [], ()).parent == tmp_path / "lt_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_path(None, [], ()).parent == Path.home() / ".cache" / "lt_kernels"


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(imbalance=100), "imbalance"),
        (dict(num_classes=1), "num_classes"),
        (dict(num_classes=70_000), "num_classes"),
        (dict(num_classes=8142, max_tokens=2000), "num_classes must be at most"),
        (dict(test_per_class=0), "test_per_class"),
        (dict(context=0), "context"),
        (dict(block=6), "block"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(seed=-1), "seed"),
    ],
)
def test_words_bad_options(options, name, tmp_path):
    with pytest.raises(ValueError, match=name):
        load("stdlib-words", cache_dir=tmp_path, **{"max_tokens": 5000, "num_classes": 20, **options})


# the split


def test_text_windows_end_at_the_files():
    windows = text_windows(np.array([1, 2, 3, 4, 5]), np.array([0, 2, 5]), 2, 9)
    assert windows.tolist() == [[9, 9, 1, 2, 9], [9, 1, 2, 9, 9], [9, 9, 3, 4, 5], [9, 3, 4, 5, 9], [3, 4, 5, 9, 9]]


def test_window_keys_tell_windows_apart():
    windows = np.stack(np.meshgrid(*[np.arange(9)] * 5), -1).reshape(-1, 5)
    assert len(np.unique(window_keys(windows))) == 9**5
    assert (window_keys(windows) == window_keys(windows.copy())).all()


def test_blocks_of_two_files():
    blocks = Blocks.cut(np.array([0, 7, 12]), 5, 1)
    assert blocks.first.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert blocks.last.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert blocks.num_blocks == 3
    assert blocks.whole.sum() == 10


def test_hold_out_holds_enough_and_never_more_than_half():
    rng = np.random.default_rng(1)
    target = np.minimum(rng.geometric(0.08, 6000) - 1, 29)
    block = rng.integers(0, 500, 6000)
    held, short = hold_out(target, block, 30, 500, 4)
    inside, total = np.bincount(target[held[block]], minlength=30), np.bincount(target, minlength=30)
    assert (np.delete(inside, short) >= 4).all()
    assert (inside <= total // 2).all()
    assert set(short) >= set(np.flatnonzero(total < 8))
    assert 0 < held.sum() < 250


def test_hold_out_names_a_class_that_lives_in_one_block():
    _, short = hold_out(np.array([0] * 8 + [1] * 8), np.array([0] * 8 + list(range(8))), 2, 8, 2)
    assert short.tolist() == [0]


def test_draw_per_class():
    target = np.array([0, 1, 1, 0, 1, 0, 1])
    drawn = draw_per_class(np.arange(10, 17), target, 2, 0)
    assert np.bincount(target[drawn - 10]).tolist() == [2, 2]
    assert (np.diff(drawn) > 0).all()


# load and LongTailedData


def test_load_names_the_data_sets():
    assert set(READERS) == {"digits-lt", "stdlib-words"}
    with pytest.raises(ValueError, match=r"name must be one of \['digits-lt', 'stdlib-words'\], got 'cifar'"):
        load("cifar")


@pytest.mark.parametrize(
    "change, name",
    [
        (dict(train=(torch.zeros(2, 1), torch.tensor([0]))), "train"),
        (dict(test=(torch.zeros(1, 1), torch.tensor([2]))), "test"),
        (dict(class_counts=torch.tensor([1, 2])), "class_counts"),
        (dict(class_names=("a",)), "class_names"),
    ],
)
def test_data_that_contradict_themselves(change, name):
    pair = (torch.zeros(2, 1), torch.tensor([0, 1]))
    good = dict(train=pair, test=pair, class_counts=torch.tensor([1, 1]), class_names=("a", "b"))
    assert LongTailedData("x", num_classes=2, input_kind="image", **good).num_words == 0
    with pytest.raises(ValueError, match=name):
        LongTailedData("x", num_classes=2, input_kind="image", **{**good, **change})


# samplers and loader


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


def test_the_package_of_data_imports_without_scikit_learn_and_trainer():
    code = "import sys, lt_kernels.data; print([m for m in ('sklearn', 'lightning', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
