"""Augmentations of scenes, whose pixels' classes move with them; drawn as those of images are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_kernels.data.base import IGNORED

SCALES = (0.5, 2.0)


def scaled_crop_flip(images: Tensor, target: Tensor, crop: int) -> tuple[Tensor, Tensor]:
    """Each scene scaled by 0.5 to 2, a random crop of crop x crop pixels, mirrored every second time.

    images: [N, channels, H, W], floating; target: int64 [N, H, W]. Pixels between pixels are bilinear, classes those of
    the nearest one. Beyond the border of a scene that is smaller than the crop pixels are 0 and classes IGNORED.
    """
    count, height, width = target.shape
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.rand(count, dtype=torch.float64)
    top, left = (
        torch.rand(count, dtype=torch.float64) * (length - crop / scale) for length in (height, width)
    )  # negative: beyond
    mirrored = torch.rand(count, 1) < 0.5
    steps = (torch.arange(crop) + 0.5) / scale[:, None]
    rows, columns = top[:, None] + steps, left[:, None] + steps  # of the old pixels, the first one being 0..1
    columns = torch.where(mirrored, columns.flip(1), columns)
    across, down = (2 * columns / width - 1).to(images), (2 * rows / height - 1).to(images)
    grid = torch.stack([across[:, None].expand(-1, crop, -1), down[:, :, None].expand(-1, -1, crop)], -1)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved, _nearest(target, rows.floor().long().to(target.device), columns.floor().long().to(target.device))


def _nearest(target: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """target[i, rows[i], columns[i]], IGNORED where there is no such pixel: [N, H, W] by [N, h] and [N, w]."""
    height, width = target.shape[1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    down = rows.clamp(0, height - 1)[:, :, None].expand(-1, -1, width)
    across = columns.clamp(0, width - 1)[:, None, :].expand(-1, rows.shape[1], -1)
    return target.gather(1, down).gather(2, across).where(inside, IGNORED)


SCENE_AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "scaled-crop-flip": scaled_crop_flip
}


def augment_scenes(name: str, images: Tensor, target: Tensor, crop: int) -> tuple[Tensor, Tensor]:
    """Scenes and their pixels' classes augmented as `name` says, one of SCENE_AUGMENTATIONS; crop 0 is the shorter
    side. Bytes come back as float32, divided by 255.
    """
    inputs = images if images.is_floating_point() else images.float() / 255
    return SCENE_AUGMENTATIONS[name](inputs, target, crop or min(target.shape[1:]))
