"""A small U-Net: features of every pixel, for a head that classifies pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_kernels.core import checks


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch norm and ReLU: [N, in, H, W] -> [N, out, H, W]."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Features of each pixel at three resolutions, [N, channels, H, W] -> [N, width, H, W]; H and W multiples of 4.

    Going down, max-pooling halves the image and the channels double, from `width` to 4 times `width`; going up,
    transposed convolutions double the image, and what was there at that resolution is laid beside (Ronneberger et al.,
    2015; padded, so that the size stays, with batch norm, and without the last ReLU). Errors: ValueError naming the
    argument or the input's shape.
    """

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        in_channels, width = checks.whole("in_channels", in_channels), checks.whole("width", width)
        self.down = nn.ModuleList(
            [_double(in_channels, width), _double(width, 2 * width), _double(2 * width, 4 * width)]
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * part * width, part * width, 2, stride=2) for part in (2, 1)])
        self.join = nn.ModuleList([_double(2 * part * width, part * width) for part in (2, 1)])
        self.join[-1] = self.join[-1][:-1]  # features of both signs: rectified ones die out, whole classes with them
        self.in_channels, self.out_features = in_channels, width
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.shape[1] != self.in_channels or input.shape[2] % 4 or input.shape[3] % 4:
            wanted = f"[N, {self.in_channels}, H, W] with H and W multiples of 4"
            raise ValueError(f"input must be {wanted}, got {list(input.shape)}")
        fine = self.down[0](input)
        middle = self.down[1](self.pool(fine))
        features = self.down[2](self.pool(middle))
        for beside, up, join in zip((middle, fine), self.up, self.join):
            features = join(torch.cat((beside, up(features)), 1))
        return features
