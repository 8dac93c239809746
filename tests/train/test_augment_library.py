"""kornia's augmentations by name: what they give, runs that resume with the same bits, and errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cuts import cut

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("kornia", reason="the extra [integrations] is not installed")

import kornia.augmentation as K

from lt_kernels import cli
from lt_kernels.data import load
from lt_kernels.train.augment import library
from lt_kernels.train.augment.augmentations import augment
from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.run.build import build_module

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def drawn(call, *arguments):
    torch.manual_seed(7)
    return call(*arguments)


def test_the_result_is_kornias():
    options = {"p": 0.7, "scale": [0.05, 0.2]}
    found = drawn(augment, "kornia:RandomErasing", IMAGES, options)
    assert torch.equal(found, drawn(K.RandomErasing(p=0.7, scale=(0.05, 0.2)), IMAGES))
    assert not torch.equal(found, IMAGES)
    bytes = (IMAGES * 255).round().to(torch.uint8)
    assert torch.equal(
        drawn(augment, "kornia:RandomErasing", bytes, options), drawn(K.RandomErasing((0.05, 0.2), p=0.7), bytes / 255)
    )


def test_another_augmentation_may_come_before():
    found = drawn(augment, "kornia:RandomInvert", IMAGES, {"p": 1.0, "after": "crop-flip"})
    torch.testing.assert_close(found, 1 - drawn(augment, "crop-flip", IMAGES))


@pytest.mark.parametrize("name", ["RandAugment", "AutoAugment", "TrivialAugment", "RandomAffine", "ColorJitter"])
def test_all_draws_are_of_torchs_generator(name: str):
    options = {"RandAugment": {"n": 2, "m": 10}, "RandomAffine": {"degrees": 20.0}, "ColorJitter": {"brightness": 0.3}}
    first = drawn(augment, f"kornia:{name}", IMAGES, options.get(name))
    augment(f"kornia:{name}", IMAGES, options.get(name))  # between them the object has seen another batch
    assert torch.equal(first, drawn(augment, f"kornia:{name}", IMAGES, options.get(name)))


def test_what_mixes_or_changes_videos_is_not_offered():
    names = library.names()
    assert {"RandomErasing", "RandomResizedCrop", "RandAugment", "ColorJitter"} <= set(names)
    assert not {"RandomMixUpV2", "RandomCutMixV2", "RandomCrop3D", "AugmentationBase2D"} & set(names)


def words(out: Path, *more: str) -> list[str]:
    small = ["epochs=2", "epoch_steps=3", "checkpoint_steps=1", "augment=kornia:RandomAffine"]
    options = "augment_options={degrees: 15.0, p: 0.8, after: shift}"
    changes = [word for change in (*small, options) for word in ("--set", change)]
    return ["train", "--config", "digits-lt", "--quiet", *changes, "--out", str(out), *more]


def test_a_run_that_was_cut_goes_on_with_the_same_bits(tmp_path: Path):
    assert cli.main(words(tmp_path / "whole")) == 0
    cut(4, lambda: cli.main(words(tmp_path / "cut")))
    assert cli.main(words(tmp_path / "cut", "--resume")) == 0
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


@pytest.mark.parametrize(("settings", "message"), [
    ({"augment": "kornia:RandomErase"}, r"NAME of kornia:NAME .*got 'RandomErase' \(did you mean 'RandomErasing'"),
    ({"augment": "kornia:RandomMixUpV2"}, "NAME of kornia:NAME must be one of .*got 'RandomMixUpV2'"),
    ({"augment": "kornia:RandomErasing", "augment_options": {"q": 1}}, "augment_options must be those of kornia"),
    ({"augment": "kornia:RandomErasing", "augment_options": {"after": "x"}}, "augment_options.after must be one of"),
    ({"augment": "shift", "augment_options": {"p": 1}}, "augment_options must be left out with augment: shift"),
    ({"augment": "korna:RandomErasing"}, "augment must be one of .*kornia:NAME; got"),
    ({"augment_views": "kornia:RandomErasing"}, "augment_views must be one of"),
])  # fmt: skip
def test_what_does_not_fit_is_named(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        build_module(make_config({"data": "digits-lt", **settings}), load("digits-lt"))


def test_words_have_no_augmentation_of_kornia():
    data = load("stdlib-words", num_classes=20, max_tokens=40000, test_per_class=2)
    with pytest.raises(ConfigError, match="augment 'kornia:RandomErasing' does not fit the inputs of stdlib-words"):
        build_module(make_config({"network": "words", "augment": "kornia:RandomErasing"}), data)


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    library._made.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'lt-kernels\[integrations\]'"):
        build_module(make_config({"augment": "kornia:RandomErasing"}), load("digits-lt"))
