"""stdlib-words: what the classes are, and that no token and no window is in both parts of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lt_kernels.data import LongTailedData, load
from lt_kernels.data.split import Blocks, draw_per_class, hold_out, text_windows, window_keys
from lt_kernels.data.words import cache_path, read_corpus, separate, source_files

WORDS = dict(num_classes=300, max_tokens=200_000, test_per_class=4, context=2, block=40)


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
