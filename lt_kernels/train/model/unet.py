"""The U-Net: features of every pixel, for a head that classifies pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_kernels.core import checks

DEEPEST = 8


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
    """Features of each pixel, [N, channels, H, W] -> [N, width, H, W]; H and W multiples of 2^depth.

    Going down, max-pooling halves the image `depth` times and the channels double, from `width` to 2^depth times
    `width` (64 and 4 for the network as published: 64 to 1024); going up, transposed convolutions double the image, and
    what was there at that resolution is laid beside (Ronneberger et al., 2015; padded, so that the size stays, with
    batch norm, and without the last ReLU). Errors: ValueError naming the argument or the input's shape.
    """

    def __init__(self, in_channels: int = 1, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        in_channels, width = checks.whole("in_channels", in_channels), checks.whole("width", width)
        widths = [width * 2**level for level in range(checks.whole("depth", depth, 1, DEEPEST) + 1)]
        self.down = nn.ModuleList([_double(before, after) for before, after in zip([in_channels, *widths], widths)])
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in widths[-2::-1]])
        self.join = nn.ModuleList([_double(2 * after, after) for after in widths[-2::-1]])
        self.join[-1] = self.join[-1][:-1]  # features of both signs: rectified ones die out, whole classes with them
        self.in_channels, self.out_features, self.multiple = in_channels, width, 2**depth
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, input: Tensor) -> Tensor:
        fits = input.ndim == 4 and input.shape[1] == self.in_channels
        if not fits or input.shape[2] % self.multiple or input.shape[3] % self.multiple:
            wanted = f"[N, {self.in_channels}, H, W] with H and W multiples of {self.multiple}"
            raise ValueError(f"input must be {wanted}, got {list(input.shape)}")
        features, beside = self.down[0](input), []
        for down in self.down[1:]:
            beside.append(features)
            features = down(self.pool(features))
        for up, join in zip(self.up, self.join):
            features = join(torch.cat((beside.pop(), up(features)), 1))
        return features
