"""Imbalance profiles, digits-lt, and what a data set must be."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch

from lt_kernels.data import READERS, LongTailedData, load
from lt_kernels.data.profiles import choose, exponential_counts, step_counts


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


def test_load_names_the_data_sets():
    assert {"digits-lt", "stdlib-words"} < set(READERS)
    with pytest.raises(ValueError, match=r"name must be one of \[.*'digits-lt', .*'stdlib-words'.*, got 'cifar'"):
        load("cifar")


def test_one_class_is_none_to_tell_from_another():
    pair = (torch.zeros(2, 1), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"num_classes must be at least 2, .* got 1, 'a'$"):
        LongTailedData("x", pair, pair, torch.tensor([2]), 1, "image", ("a",))


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


def test_the_package_of_data_imports_without_scikit_learn_and_trainer():
    code = "import sys, lt_kernels.data; print([m for m in ('sklearn', 'lightning', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
