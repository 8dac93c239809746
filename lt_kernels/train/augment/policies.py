"""AutoAugment and RandAugment for batches of images: every image draws operations and strengths of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_kernels.train.augment import colour

Operation = Callable[[Tensor, Tensor], Tensor]
FILL = 128 / 255  # what shows where a picture was moved away


def _move(images: Tensor, matrix: Tensor) -> Tensor:
    """Take each pixel from where `matrix` [N, 2, 3], in units of half the picture, says; nearest pixel."""
    grid = F.affine_grid(matrix.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images - FILL, grid, mode="nearest", align_corners=False) + FILL


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b, c], -1), torch.stack([d, e, f], -1)], -2)


def shear_x(images: Tensor, strength: Tensor) -> Tensor:
    """Rows shifted by `strength` pixels a row, about the upper left corner."""
    ratio = strength * images.shape[2] / images.shape[3]
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _move(images, _matrix(one, ratio, ratio, none, one, none))


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    """Columns shifted by `strength` pixels a column, about the upper left corner."""
    ratio = strength * images.shape[3] / images.shape[2]
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _move(images, _matrix(one, none, none, ratio, one, ratio))


def translate_x(images: Tensor, strength: Tensor) -> Tensor:
    """Shifted sideways by a share of the width."""
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _move(images, _matrix(one, none, 2 * strength, none, one, none))


def translate_y(images: Tensor, strength: Tensor) -> Tensor:
    """Shifted up or down by a share of the height."""
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _move(images, _matrix(one, none, none, none, one, 2 * strength))


def rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Turned by `strength` degrees about the middle, against the clock."""
    angle, ratio = strength * math.pi / 180, images.shape[2] / images.shape[3]
    none = torch.zeros_like(strength)
    return _move(images, _matrix(angle.cos(), -angle.sin() * ratio, none, angle.sin() / ratio, angle.cos(), none))


OPERATIONS: dict[str, Operation] = {
    "shear-x": shear_x,
    "shear-y": shear_y,
    "translate-x": translate_x,
    "translate-y": translate_y,
    "rotate": rotate,
    "colour": colour.saturation,
    "posterize": colour.posterize,
    "solarize": colour.solarize,
    "brighten-dark": colour.brighten_dark,
    "contrast": colour.contrast,
    "sharpness": colour.sharpness,
    "brightness": colour.brightness,
    "autocontrast": colour.autocontrast,
    "equalize": colour.equalize,
    "invert": colour.invert,
}
NAMES = list(OPERATIONS)
SIGNED = {"shear-x", "shear-y", "translate-x", "translate-y", "rotate"}
AROUND_ONE = {"colour", "contrast", "sharpness", "brightness"}


class Step(NamedTuple):
    """An operation, with what probability it is applied, and its magnitude 0..9."""

    operation: str
    probability: float
    magnitude: int


# The 25 pairs that the search on CIFAR-10 found (Cubuk et al., 2019, appendix).
_FOUND = """
invert .1 7, contrast .2 6; rotate .7 2, translate-x .3 9; sharpness .8 1, sharpness .9 3;
shear-y .5 8, translate-y .7 9; autocontrast .5 8, equalize .9 2; shear-y .2 7, posterize .3 7;
colour .4 3, brightness .6 7; sharpness .3 9, brightness .7 9; equalize .6 5, equalize .5 1;
contrast .6 7, sharpness .6 5; colour .7 7, translate-x .5 8; equalize .3 7, autocontrast .4 8;
translate-y .4 3, sharpness .2 6; brightness .9 6, colour .2 8; solarize .5 2, invert 0 3;
equalize .2 0, autocontrast .6 0; equalize .2 8, equalize .6 4; colour .9 9, equalize .6 6;
autocontrast .8 4, solarize .2 8; brightness .1 3, colour .7 0; solarize .4 5, autocontrast .9 3;
translate-y .9 9, translate-y .7 9; autocontrast .9 2, solarize .8 3; equalize .8 8, invert .1 3;
translate-y .7 9, autocontrast .9 1
"""


def _step(text: str) -> Step:
    operation, probability, magnitude = text.split()
    return Step(operation, float(probability), int(magnitude))


CIFAR_POLICY = [[_step(part) for part in pair.split(",")] for pair in _FOUND.split(";")]


def auto_strength(operation: str, magnitude: int) -> float:
    """The strength that magnitude 0..9 stands for, before its sign, in AutoAugment's ranges."""
    share = magnitude / 9
    if operation == "posterize":
        return round(8 - 4 * share)
    most = {"rotate": 30.0, "translate-x": 150 / 331, "translate-y": 150 / 331, "shear-x": 0.3, "shear-y": 0.3}
    return 1 - share if operation == "solarize" else most.get(operation, 0.9) * share


def apply(images: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """Operation NAMES[which[i]] on image i with strength[i]; -1 leaves it alone. which, strength: [N] on the CPU."""
    result = images.clone()
    for index in which[which >= 0].unique().tolist():
        rows = (which == index).nonzero().flatten().to(images.device)
        changed = OPERATIONS[NAMES[index]](images[rows], strength.to(images)[rows])
        result = result.index_copy(0, rows, changed)
    return result


def _signs(count: int) -> Tensor:
    return 1 - 2 * torch.randint(2, (count,)).float()


def auto_augment(images: Tensor) -> Tensor:
    """One of the 25 pairs of operations found on CIFAR-10 for each image (Cubuk et al., 2019); values in 0..1."""
    count = len(images)
    pair = torch.randint(len(CIFAR_POLICY), (count,))
    for place in range(2):
        steps = [steps[place] for steps in CIFAR_POLICY]
        which = torch.tensor([NAMES.index(step.operation) for step in steps])[pair]
        used = torch.rand(count) < torch.tensor([step.probability for step in steps])[pair]
        size = torch.tensor([float(auto_strength(step.operation, step.magnitude)) for step in steps])[pair]
        kind = torch.tensor([(step.operation in SIGNED) + 2 * (step.operation in AROUND_ONE) for step in steps])[pair]
        signed = _signs(count) * size
        strength = torch.where(kind == 1, signed, torch.where(kind == 2, 1 + signed, size))
        images = apply(images, which.where(used, torch.tensor(-1)), strength)
    return images


def rand_strength(operation: str, magnitude: Tensor, sign: Tensor) -> Tensor:
    """The strength for magnitudes 0..10 [N] in RandAugment's ranges; signs [N] of what has a direction."""
    share = magnitude / 10
    if operation in AROUND_ONE:
        return 0.1 + 1.8 * share
    if operation in SIGNED:
        most = {"rotate": 30.0, "translate-x": 0.45, "translate-y": 0.45}
        return sign * most.get(operation, 0.3) * share
    return {"posterize": (4 * share).floor(), "brighten-dark": 110 / 255 * share}.get(operation, share)


def rand_augment(
    images: Tensor, operations: int = 2, magnitude: float = 10.0, spread: float = 0.5, share: float = 0.5
) -> Tensor:
    """`operations` operations drawn for each image, each applied with probability `share`; values in 0..1.

    Magnitudes are normal around `magnitude`, clipped to 0..10 (Cubuk et al., 2020, with the spread and the share of
    the implementations in use).
    """
    count = len(images)
    for _ in range(operations):
        which = torch.randint(len(NAMES), (count,))
        drawn = (magnitude + spread * torch.randn(count)).clamp(0, 10)
        sign = _signs(count)
        table = torch.stack([rand_strength(name, drawn, sign) for name in NAMES])
        used = torch.rand(count) < share
        strength = table.gather(0, which.unsqueeze(0)).squeeze(0)
        images = apply(images, which.where(used, torch.tensor(-1)), strength)
    return images
