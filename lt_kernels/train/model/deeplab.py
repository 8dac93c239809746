"""DeepLabv3+: features of every pixel from a residual network whose last stage is dilated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_kernels.core import checks
from lt_kernels.train.model import resnet

RATES = (6, 12, 18)  # of the pyramid's dilated convolutions, in pixels of a sixteenth of the image
LOW = 48  # channels of the low-level features


def _layer(in_channels: int, out_channels: int, size: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the image's size, with batch norm and ReLU."""
    padding = dilation * (size // 2)
    convolution = nn.Conv2d(in_channels, out_channels, size, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def dilate(stage: nn.Sequential) -> None:
    """Have a stage of bottleneck blocks keep the image's size: no stride, and what came after it dilated by 2.

    At every second pixel the result is that of the stage as it was.
    """
    for index, block in enumerate(stage):
        if index == 0:
            block.conv2.stride = block.downsample[0].stride = (1, 1)
        else:
            block.conv2.dilation = block.conv2.padding = (2, 2)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling, [N, in, H, W] -> [N, out, H, W]: a 1 x 1 and three dilated 3 x 3 convolutions and
    the mean of the whole image side by side, and a 1 x 1 convolution over them (Chen et al., 2017).

    In training with one image, whose mean has no variance, batch norm takes its running statistics for the means, and
    leaves them; a SyncBatchNorm takes those of all processes.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        dilated = [_layer(in_channels, out_channels, 3, rate) for rate in RATES]
        self.branches = nn.ModuleList([_layer(in_channels, out_channels), *dilated])
        self.whole = _layer(in_channels, out_channels)
        self.join = _layer(5 * out_channels, out_channels)

    def forward(self, input: Tensor) -> Tensor:
        whole = self._of_whole(input.mean((2, 3), keepdim=True)).expand(-1, -1, *input.shape[2:])
        return self.join(torch.cat([*(branch(input) for branch in self.branches), whole], 1))

    def _of_whole(self, means: Tensor) -> Tensor:
        norm = self.whole[1]
        if len(means) > 1 or not norm.training or isinstance(norm, nn.SyncBatchNorm):
            return self.whole(means)
        norm.eval()
        try:
            return self.whole(means)
        finally:
            norm.train()


class DeepLab(nn.Module):
    """Features of each pixel, [N, channels, H, W] -> [N, channels_out, H, W] (Chen et al., 2018, DeepLabv3+).

    A ResNet-50 to a sixteenth of the image, its last stage dilated; the pyramid; its result scaled to a quarter beside
    48 channels of the first stage; two 3 x 3 convolutions; and bilinear scaling to the image. Published is the
    classifier before that scaling: of linear logits the same, for both are linear and the scaling's weights add up to
    1. channels: of the pyramid and the features. width, weights: of the ResNet, as in resnet.ResNet. Errors: ValueError
    naming the argument or the input.
    """

    def __init__(self, in_channels: int = 3, channels: int = 256, width: int = 64, weights: str = "") -> None:
        super().__init__()
        channels = checks.whole("channels", channels)
        self.backbone: Any = resnet.resnet50(in_channels, width=width, weights=weights)
        dilate(self.backbone.layer4)
        self.pyramid = Pyramid(self.backbone.out_features, channels)
        self.low = _layer(4 * width, LOW)
        self.decoder = nn.Sequential(_layer(channels + LOW, channels, 3), _layer(channels, channels, 3))
        self.out_features = channels

    def forward(self, input: Tensor) -> Tensor:
        net = self.backbone
        quarter = net.layer1(net.maxpool(F.relu(net.bn1(net.conv1(input)))))
        high = self.pyramid(net.layer4(net.layer3(net.layer2(quarter))))
        low = self.low(quarter)
        features = self.decoder(torch.cat([_scaled(high, low), low], 1))
        return _scaled(features, input)


def _scaled(features: Tensor, like: Tensor) -> Tensor:
    """Bilinear scaling to the height and width of `like`."""
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)
