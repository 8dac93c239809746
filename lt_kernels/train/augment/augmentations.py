"""Augmentations of whole batches: each sample has draws of its own, all from torch's global generator on the CPU.

So a checkpoint that keeps that generator's state keeps the augmentations, on every device. Inputs are not changed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_kernels.core import checks
from lt_kernels.train.augment import colour, library, policies

Augmentation = Callable[[Tensor], Tensor]
PAD = 4  # pixels around a CIFAR image
DROPPED = 0.1  # of a window's words
ATTEMPTS = 10  # at a box that fits into the image


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs


def _reflected(length: int) -> Tensor:
    """From where each of `length` pixels comes when shifted by -1, 0 and 1: int64 [3, length]."""
    place = torch.arange(length) + torch.arange(-1, 2).unsqueeze(1)
    return ((length - 1) - ((length - 1) - place.abs()).abs()).clamp(min=0)


@functools.lru_cache(maxsize=8)
def _shift_table(height: int, width: int) -> Tensor:
    """The nine shifts of an image by up to a pixel as indices of its flattened pixels: int64 [9, 1, height * width]."""
    rows, columns = _reflected(height), _reflected(width)
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(9, 1, -1)


def shift(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel down and sideways; at the border it is reflected."""
    count, channels, height, width = images.shape
    moved = _shift_table(height, width)[torch.randint(9, (count,))].to(images.device)
    return images.flatten(2).gather(2, moved.expand(-1, channels, -1)).view(images.shape)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels (rows[i], columns[i]) of image i: [N, channels, H, W] by [N, h] and [N, w] -> [N, channels, h, w]."""
    count, channels, _, width = images.shape
    down = rows.to(images.device)[:, None, :, None].expand(count, channels, -1, width)
    across = columns.to(images.device)[:, None, None, :].expand(count, channels, rows.shape[1], -1)
    return images.gather(2, down).gather(3, across)


def crop_flip(images: Tensor) -> Tensor:
    """Four black pixels around, a random crop of the old size, mirrored every second time (He et al., 2016)."""
    count, _, height, width = images.shape
    rows = torch.randint(2 * PAD + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * PAD + 1, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return _take(F.pad(images, (PAD,) * 4), rows, columns)


def cutout(images: Tensor) -> Tensor:
    """A black square of half the side, its centre anywhere, clipped at the border (DeVries and Taylor, 2017)."""
    count, _, height, width = images.shape
    covered = []
    for length in (height, width):
        away = torch.arange(length) - torch.randint(length, (count, 1))
        covered.append((away >= -(length // 4)) & (away < length // 4))
    hole = covered[0][:, None, :, None] & covered[1][:, None, None, :]
    return images.masked_fill(hole.to(images.device), 0.0)


def _boxes(count: int, height: int, width: int, least: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width [N] of boxes with a share of least..1 of the area and a ratio of 3/4..4/3.

    The first of ten attempts that fits, else the largest box of such a ratio in the middle.
    """
    area = height * width * (least + (1 - least) * torch.rand(count, ATTEMPTS))
    ratio = torch.exp(math.log(4 / 3) * (2 * torch.rand(count, ATTEMPTS) - 1))
    tall, wide = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
    first = fits.float().argmax(1, keepdim=True)
    some = fits.any(1)
    tall = torch.where(some, tall.gather(1, first).squeeze(1), float(min(height, round(width * 4 / 3))))
    wide = torch.where(some, wide.gather(1, first).squeeze(1), float(min(width, round(height * 4 / 3))))
    place = torch.where(some, torch.rand(2, count), 0.5)
    top, left = (place[0] * (height - tall + 1)).floor(), (place[1] * (width - wide + 1)).floor()
    return top, left, tall, wide


def resized_crop_flip(images: Tensor, least: float = 0.08, part: float = 7 / 8) -> Tensor:
    """A random part of each image, `least`..1 of its area, scaled to `part` of its sides, mirrored every second time.

    From 256 x 256 pixels the result has 224 x 224 (Szegedy et al., 2015); bilinear, as if between the pixels.
    """
    count, channels, height, width = images.shape
    top, left, tall, wide = _boxes(count, height, width, least)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    none = torch.zeros(count)
    across = torch.stack([mirror * wide / width, none, (2 * left + wide) / width - 1], 1)
    down = torch.stack([none, tall / height, (2 * top + tall) / height - 1], 1)
    matrix = torch.stack([across, down], 1).to(images)
    size = [count, channels, max(1, round(part * height)), max(1, round(part * width))]
    grid = F.affine_grid(matrix, size, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _around(images: Tensor, middle: float, reach: float) -> Tensor:
    return (middle + reach * (2 * torch.rand(len(images)) - 1)).to(images)


def _sometimes(images: Tensor, changed: Tensor, share: float) -> Tensor:
    """`changed` for a random `share` of the images."""
    return torch.where(colour.per_image(torch.rand(len(images)) < share).to(images.device), changed, images)


def jitter(images: Tensor, reach: float = 0.4, turn: float = 0.0) -> Tensor:
    """Brightness, contrast and saturation times 1 - reach..1 + reach, in an order drawn for the batch, then the hue
    by up to `turn` of a turn.
    """
    for index in torch.randperm(3).tolist():
        change = (colour.brightness, colour.contrast, colour.saturation)[index]
        images = change(images, _around(images, 1.0, reach))
    return colour.hue(images, _around(images, 0.0, turn)) if turn else images


def similar(images: Tensor) -> Tensor:
    """Jitter with hue on four images of five, and one of five in grey (Chen et al., 2020, SimCLR)."""
    images = _sometimes(images, jitter(images, 0.4, 0.1), 0.8)
    return _sometimes(images, colour.gray(images).expand_as(images), 0.2)


def similar_crop(images: Tensor) -> Tensor:
    """A part of 0.2..1 of the area at the old size, `similar`, and a blur of 0.1 to 2 pixels every second time."""
    images = similar(resized_crop_flip(images, 0.2, 1.0))
    return _sometimes(images, colour.blur(images, _around(images, 1.05, 0.95)), 0.5)


def word_dropout(words: Tensor) -> Tensor:
    """Each word dropped with probability 0.1; the word at that place of another window of the batch stands in for it.

    So replacements come as often as words do (Xie et al., 2017). words: integers [N, places].
    """
    dropped = torch.rand(words.shape) < DROPPED
    others = torch.randint(len(words), words.shape).to(words.device)
    return torch.where(dropped.to(words.device), words.gather(0, others), words)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _unchanged,
    "shift": shift,
    "crop-flip": crop_flip,
    "crop-flip-cutout": lambda images: cutout(crop_flip(images)),
    "autoaugment-cutout": lambda images: cutout(policies.auto_augment(crop_flip(images))),
    "similar-crop": similar_crop,
    "resized-crop-flip": resized_crop_flip,
    "resized-crop-jitter": lambda images: jitter(resized_crop_flip(images)),
    "resized-crop-similar": lambda images: similar(resized_crop_flip(images)),
    "resized-crop-randaugment": lambda images: policies.rand_augment(jitter(resized_crop_flip(images))),
    "word-dropout": word_dropout,
}
_FOR_WORDS = ("none", "word-dropout")
_FOR_IMAGES = tuple(name for name in AUGMENTATIONS if name != "word-dropout")


def augment(name: str, inputs: Tensor, options: Mapping[str, Any] | None = None) -> Tensor:
    """Return a batch augmented as `name` says, one of AUGMENTATIONS or kornia:NAME; two calls give two views.

    inputs: images [N, channels, H, W], floating or uint8 (which come back as float32, divided by 255), or integer words
    [N, places]. The operations on colours and the black of a border or a cutout take values in 0..1. options: of
    kornia's augmentation, and `after`, the one of AUGMENTATIONS that comes before it. Errors: ValueError naming what is
    allowed for this kind of input.
    """
    if inputs.ndim == 2 and not inputs.is_floating_point():
        checks.choice("augment for words", name, _FOR_WORDS)
    elif inputs.ndim == 4:
        inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        if name.startswith(library.PREFIX):
            own = dict(options or {})
            before = checks.choice("augment_options.after", own.pop("after", "none"), _FOR_IMAGES)
            return library.augmented(name, AUGMENTATIONS[before](inputs), own)
        checks.choice("augment for images", name, (*_FOR_IMAGES, f"{library.PREFIX}NAME"))
    else:
        checks.choice(f"augment for inputs of shape {list(inputs.shape)}", name, ("none",))
    return AUGMENTATIONS[name](inputs)
