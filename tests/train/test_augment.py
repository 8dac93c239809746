"""Augmentations: what each may do to a sample, draws of its own for each, and colour operations against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import generator

from lt_kernels.train.augment import colour, policies
from lt_kernels.train.augment.augmentations import (
    AUGMENTATIONS,
    augment,
    crop_flip,
    cutout,
    resized_crop_flip,
    shift,
    word_dropout,
)

IMAGE_NAMES = [name for name in AUGMENTATIONS if name != "word-dropout"]
PILLOW = "pillow, which matplotlib brings along, is not installed"


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, uint8 [N, channels, H, W]."""
    coarse = torch.rand(count, channels, 4, 4, generator=generator(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


@pytest.mark.parametrize("name", IMAGE_NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_of_images(name, channels):
    before = pictures(6, channels, 16, 24).float() / 255
    images = before.clone()
    torch.manual_seed(3)
    first, second = augment(name, images), augment(name, images)
    torch.manual_seed(3)
    assert torch.equal(augment(name, images), first)  # torch's generator is the only source
    assert torch.equal(images, before)
    small = name.startswith("resized")
    assert first.shape == (6, channels, *((14, 21) if small else (16, 24)))
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1 + 1e-6
    assert name == "none" or not torch.equal(first, second)


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_bytes_come_back_as_shares_of_255(name):
    images = pictures(3, 3, 12, 12)
    torch.manual_seed(1)
    found = augment(name, images)
    torch.manual_seed(1)
    assert torch.equal(found, augment(name, images.float() / 255))


@pytest.mark.parametrize("name", [name for name in IMAGE_NAMES if name != "none"])
def test_samples_of_a_batch_have_draws_of_their_own(name):
    found = augment(name, pictures(1, 3, 16, 16).expand(24, -1, -1, -1))
    assert len({row.numpy().tobytes() for row in found}) > 4


def test_shift_is_one_of_nine_reflected_shifts():
    images = pictures(200, 2, 5, 6).float()
    found = shift(images)
    around = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    seen = set()
    for before, after in zip(around, found):
        moves = [(y, x) for y in range(3) for x in range(3) if torch.equal(before[:, y : y + 5, x : x + 6], after)]
        assert len(moves) == 1
        seen.add(moves[0])
    assert len(seen) == 9
    assert shift(torch.rand(2, 1, 1, 1)).shape == (2, 1, 1, 1)


def test_crop_flip_is_a_window_of_the_padded_image_or_its_mirror():
    images = pictures(120, 1, 8, 7).float() + 1
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    mirrored, tops = 0, set()
    for before, after in zip(padded, crop_flip(images)):
        windows = {(y, x): before[:, y : y + 8, x : x + 7] for y in range(9) for x in range(9)}
        plain = [place for place, window in windows.items() if torch.equal(window, after)]
        turned = [place for place, window in windows.items() if torch.equal(window.flip(2), after)]
        assert plain or turned
        mirrored += not plain
        tops.add((plain or turned)[0][0])
    assert 30 < mirrored < 90
    assert tops == set(range(9))


def test_cutout_covers_a_clipped_square_of_half_the_side():
    found = cutout(torch.ones(300, 2, 16, 16))
    assert torch.equal(found[:, 0], found[:, 1])
    heights = set()
    for hole in found[:, 0] == 0:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert int(hole.sum()) == len(rows) * len(columns)  # a rectangle
        assert int(rows[-1] - rows[0]) + 1 == len(rows)
        heights.add(len(rows))
    assert heights == set(range(4, 9))


def test_resized_crop_reads_a_box_of_the_promised_area_and_ratio():
    """On a picture whose channels are its coordinates the corners of the crop can be read off."""
    side = 64
    place = (torch.arange(side) + 0.5) / side
    ramp = torch.stack([place.expand(side, side), place.unsqueeze(1).expand(side, side)]).expand(400, -1, -1, -1)
    found = resized_crop_flip(ramp)
    size = found.shape[-1]
    assert size == 56
    across = (found[:, 0, 28, -2] - found[:, 0, 28, 1]) * size / (size - 3)
    down = (found[:, 1, -2, 28] - found[:, 1, 1, 28]) * size / (size - 3)
    area, ratio = across.abs() * down, across.abs() / down
    assert float(area.min()) > 0.06
    assert float(area.max()) <= 1.01
    assert float(area.std()) > 0.2
    assert float(ratio.min()) > 0.70
    assert float(ratio.max()) < 1.40
    assert 120 < int((across < 0).sum()) < 280
    assert float(down.min()) > 0  # never upside down


def test_a_whole_crop_is_the_image():
    """least = 1 fits only the whole of a square: no attempt with another ratio has room."""
    images = pictures(8, 3, 9, 9).float() / 255
    found = resized_crop_flip(images, least=1.0, part=1.0)
    for before, after in zip(images, found):
        assert min(float((after - before).abs().max()), float((after - before.flip(2)).abs().max())) < 1e-5


def test_word_dropout_takes_words_of_the_same_place():
    words = torch.arange(2000).view(500, 4).int()
    before = words.clone()
    found = word_dropout(words)
    assert torch.equal(words, before)
    assert found.dtype == torch.int32
    assert torch.equal(found % 4, words % 4)  # the place is the remainder
    assert 0.07 < float((found != words).float().mean()) < 0.13
    assert torch.equal(augment("none", words), words)


@pytest.mark.parametrize(
    "name, inputs, text",
    [
        ("crop", torch.rand(1, 1, 4, 4), r"augment for images must be one of 'none', 'shift', .*got 'crop'"),
        ("word-dropout", torch.rand(1, 1, 4, 4), r"augment for images must be one of"),
        ("shift", torch.zeros(2, 3, dtype=torch.int32), r"augment for words must be one of 'none', 'word-dropout'"),
        ("shift", torch.rand(2, 3), r"augment for inputs of shape \[2, 3\] must be one of 'none'"),
    ],
)
def test_a_name_that_does_not_fit_is_an_error(name, inputs, text):
    with pytest.raises(ValueError, match=text):
        augment(name, inputs)


# what the transform takes a pixel's place from, in pixels of a picture of 24 by 20
AFFINE = {
    "shear-x": lambda strength: (1, strength, 0, 0, 1, 0),
    "shear-y": lambda strength: (1, 0, 0, strength, 1, 0),
    "translate-x": lambda strength: (1, 0, strength * 24, 0, 1, 0),
    "translate-y": lambda strength: (1, 0, 0, 0, 1, strength * 20),
}


def pillow(operation: str, strength: float, picture: torch.Tensor) -> torch.Tensor:
    """The operation as Pillow does it, on one picture."""
    image = pytest.importorskip("PIL.Image", reason=PILLOW)
    from PIL import ImageEnhance, ImageOps

    one, grey = image.fromarray(picture.permute(1, 2, 0).numpy()), (128, 128, 128)
    if operation in AFFINE:
        result = one.transform(one.size, image.Transform.AFFINE, AFFINE[operation](strength), fillcolor=grey)
    elif operation == "rotate":
        result = one.rotate(strength, fillcolor=grey)
    elif operation in policies.AROUND_ONE:
        result = getattr(ImageEnhance, operation.replace("colour", "color").title())(one).enhance(strength)
    else:
        options = {"posterize": [int(strength)], "solarize": [int(strength * 256)]}.get(operation, [])
        result = getattr(ImageOps, operation)(one, *options)
    return torch.from_numpy(np.array(result)).permute(2, 0, 1)


# Pillow computes with bytes and rounds at each step: two levels of 255.
@pytest.mark.parametrize(
    "operation, strength, levels",
    [
        ("colour", 0.3, 2), ("colour", 1.7, 2), ("contrast", 0.4, 2), ("contrast", 1.6, 2), ("brightness", 0.5, 2),
        ("brightness", 1.5, 2), ("sharpness", 0.1, 2), ("sharpness", 1.9, 2), ("posterize", 4, 0), ("posterize", 7, 0),
        ("solarize", 0.0, 0), ("solarize", 0.375, 0), ("solarize", 1.0, 0), ("invert", 0.0, 0), ("equalize", 0.0, 0),
        ("autocontrast", 0.0, 2), ("rotate", 30.0, 0), ("rotate", -12.0, 0), ("shear-x", 0.3, 0), ("shear-x", -0.23, 0),
        ("shear-y", 0.25, 0), ("translate-x", 0.25, 0), ("translate-y", -0.2, 0),
    ],
)  # fmt: skip
def test_an_operation_is_pillows(operation, strength, levels):
    images = pictures(4, 3, 20, 24, seed=5)
    expected = torch.stack([pillow(operation, strength, picture) for picture in images]).int()
    changed = policies.OPERATIONS[operation](images.float() / 255, torch.full((4,), float(strength)))
    apart = ((changed * 255).round().int() - expected).abs() > levels
    assert float(apart.float().mean()) == 0
    assert float((expected - images.int()).abs().float().mean()) > 0.3 or strength == 1


def test_strength_is_by_image():
    images = pictures(3, 3, 9, 9).float() / 255
    strength = torch.tensor([1.0, 0.0, 0.5])
    for operation in policies.OPERATIONS.values():
        together = operation(images, strength)
        for row in range(3):
            alone = operation(images[row : row + 1], strength[row : row + 1])
            assert torch.allclose(together[row : row + 1], alone, atol=1e-6)


def test_hue_turns_colours_and_leaves_grey():
    red = torch.tensor([0.5, 0.2, 0.2]).view(1, 3, 1, 1)
    assert torch.allclose(colour.hue(red, torch.tensor([1 / 3])).flatten(), torch.tensor([0.2, 0.5, 0.2]), atol=1e-6)
    grey = torch.full((1, 3, 2, 2), 0.4)
    assert torch.allclose(colour.hue(grey, torch.tensor([0.17])), grey, atol=1e-6)


def test_blur_is_a_convolution_with_a_gaussian():
    images = pictures(2, 1, 17, 19, seed=2).double() / 255
    found = colour.blur(images, torch.tensor([0.7, 1.9]))
    for row, sigma in enumerate((0.7, 1.9)):
        weight = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
        weight = np.outer(weight, weight) / weight.sum() ** 2
        padded = np.pad(images[row, 0].numpy(), 4, mode="reflect")
        expected = sum(weight[y, x] * padded[y : y + 17, x : x + 19] for y in range(9) for x in range(9))
        assert np.abs(found[row, 0].numpy() - expected).max() < 1e-6  # strengths come as float32


def test_the_policy_has_the_published_pairs():
    assert len(policies.CIFAR_POLICY) == 25
    assert all(len(pair) == 2 for pair in policies.CIFAR_POLICY)
    assert {step.operation for pair in policies.CIFAR_POLICY for step in pair} <= set(policies.NAMES)
    assert policies.CIFAR_POLICY[3] == [("shear-y", 0.5, 8), ("translate-y", 0.7, 9)]
    strengths = {
        ("rotate", 9): 30.0,
        ("shear-y", 3): 0.1,
        ("posterize", 9): 4,
        ("solarize", 9): 0.0,
        ("colour", 9): 0.9,
    }
    for (operation, magnitude), strength in strengths.items():
        assert policies.auto_strength(operation, magnitude) == pytest.approx(strength)


def test_randaugment_uses_every_operation_in_its_range():
    drawn, sign = torch.full((2,), 10.0), torch.tensor([1.0, -1.0])
    expected = {"rotate": [30, -30], "translate-x": [0.45, -0.45], "shear-y": [0.3, -0.3], "colour": [1.9, 1.9],
                "posterize": [4, 4], "solarize": [1, 1], "brighten-dark": [110 / 255] * 2}  # fmt: skip
    for operation, strength in expected.items():
        assert policies.rand_strength(operation, drawn, sign).tolist() == pytest.approx(strength)
    found = policies.rand_augment(pictures(64, 3, 12, 12).float() / 255)
    assert found.shape == (64, 3, 12, 12)
    assert not found.isnan().any()
