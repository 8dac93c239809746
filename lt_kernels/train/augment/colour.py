"""Colour operations on batches of images [N, channels, H, W] with values in 0..1, a strength for each image.

`strength` is [N] throughout; nothing is changed in place, and results stay in 0..1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: what a grey picture of a coloured one is
LEVELS = 255


def per_image(values: Tensor) -> Tensor:
    """[N] as [N, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def gray(images: Tensor) -> Tensor:
    """The grey picture [N, 1, H, W]: luma of three channels, else the channels' mean."""
    if images.shape[1] != len(LUMA):
        return images.mean(1, keepdim=True)
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)


def blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """other + strength (images - other): 1 keeps the images, 0 gives the other ones, beyond 1 away from them."""
    return (other + per_image(strength) * (images - other)).clamp(0, 1)


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with black."""
    return blend(images, torch.zeros_like(images), strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with the mean grey of each image."""
    return blend(images, gray(images).mean((2, 3), keepdim=True), strength)


def saturation(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with the grey picture."""
    return blend(images, gray(images), strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with a smoothed picture, [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; the border's pixels stay."""
    channels, (height, width) = images.shape[1], images.shape[2:]
    if min(height, width) < 3:
        return images
    kernel = torch.ones(3, 3, dtype=images.dtype, device=images.device)
    kernel[1, 1] = 5
    smooth = F.conv2d(images, (kernel / 13).expand(channels, 1, 3, 3), groups=channels)
    inner = F.pad(torch.ones_like(smooth[:1, :1]), (1, 1, 1, 1))
    return blend(images, torch.where(inner > 0, F.pad(smooth, (1, 1, 1, 1)), images), strength)


def hue(images: Tensor, strength: Tensor) -> Tensor:
    """Turn the colours by `strength` of a full turn about the grey axis (a linear stand-in for the turn in HSV)."""
    if images.shape[1] != len(LUMA):
        return images
    angle = 2 * math.pi * strength
    same, axis = angle.cos(), angle.sin() / math.sqrt(3)
    even = (1 - same) / 3
    rows = [(same + even, even - axis, even + axis), (even + axis, same + even, even - axis)]
    rows.append((even - axis, even + axis, same + even))
    turn = torch.stack([torch.stack(row, -1) for row in rows], -2)  # Rodrigues' formula for the axis (1, 1, 1)
    return torch.einsum("nij,njhw->nihw", turn, images).clamp(0, 1)


def blur(images: Tensor, strength: Tensor, reach: int = 4) -> Tensor:
    """Gaussian blur, `strength` the standard deviation in pixels; the kernel ends `reach` pixels away."""
    count, channels, height, width = images.shape
    reach = min(reach, height - 1, width - 1)
    offset = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offset / strength.unsqueeze(1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padded = F.pad(images, (reach,) * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    down = F.conv2d(padded, kernel.view(-1, 1, 2 * reach + 1, 1), groups=count * channels)
    across = F.conv2d(down, kernel.view(-1, 1, 1, 2 * reach + 1), groups=count * channels)
    return across.view(count, channels, height, width)


def invert(images: Tensor, strength: Tensor) -> Tensor:
    """The negative; `strength` is not used."""
    return 1 - images


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """The negative of the levels 0..255 that are at least `strength` times 256; 1 changes nothing."""
    return torch.where(images * LEVELS < per_image(strength) * (LEVELS + 1), images, 1 - images)


def brighten_dark(images: Tensor, strength: Tensor) -> Tensor:
    """Add `strength` to what is darker than a half."""
    return torch.where(images < 0.5, (images + per_image(strength)).clamp(0, 1), images)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the `strength` highest of eight bits."""
    step = 2 ** (8 - per_image(strength))
    return ((images * LEVELS).round() / step).floor() * step / LEVELS


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to 0..1, where it is not constant; `strength` is not used."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Make each channel's histogram of 256 levels as even as a table of levels can; `strength` is not used.

    level -> (how many pixels are darker + step / 2) / step, step = (pixels not of the brightest level) / 255.
    """
    level = (images * LEVELS).round().long().flatten(2).flatten(0, 1)  # [N * channels, H * W]
    ordered = level.sort(1).values
    each = torch.arange(LEVELS + 1, device=images.device).expand(len(level), -1).contiguous()
    darker = torch.searchsorted(ordered, each)
    step = torch.searchsorted(ordered, ordered[:, -1:].contiguous()) // LEVELS
    table = ((darker + step // 2) // step.clamp(min=1)).clamp(max=LEVELS)
    even = (table.gather(1, level).to(images.dtype) / LEVELS).view_as(images)
    return torch.where((step > 0).view(*images.shape[:2], 1, 1), even, images)
