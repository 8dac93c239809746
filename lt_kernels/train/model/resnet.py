"""Residual networks for photographs, with the parameter names of the usual checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lt_kernels.core import checks
from lt_kernels.train.files.tensors import read_tensors

STEPS = 4  # stages of a network, each but the first halving the picture


def _normalized(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the picture's size but for its stride, and its batch norm."""
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: [N, in, H, W] -> [N, width, H / stride, W / stride] (He et al., 2016)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, per_group: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _normalized(in_channels, width, 3, stride)
        self.conv2, self.bn2 = _normalized(width, width, 3)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, input: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(input)))))
        return F.relu(residual + self.downsample(input))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a shortcut: [N, in, H, W] -> [N, 4 width, H / stride, W / stride].

    The 3 x 3 convolution has the stride, and in ResNeXt `groups` groups of `per_group` channels for every 64 of width
    (He et al., 2016; Xie et al., 2017).
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, per_group: int) -> None:
        super().__init__()
        inner = max(1, width * per_group // 64) * groups
        self.conv1, self.bn1 = _normalized(in_channels, inner, 1)
        self.conv2, self.bn2 = _normalized(inner, inner, 3, stride, groups)
        self.conv3, self.bn3 = _normalized(inner, 4 * width, 1)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, input: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(input))))))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(input))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*_normalized(in_channels, out_channels, 1, stride))


class ResNet(nn.Module):
    """A residual network: [N, channels, H, W] -> features [N, out_features], the mean over what is left of the picture.

    blocks: how many in each of the four stages. width: channels of the first stage, doubled by each other one (64; a
    smaller one is quicker and fits no checkpoint). weights: a file that torch.save wrote of a state_dict with the
    parameter names conv1, bn1, layer1.0.conv1, ...; a classifier `fc` in it is left out. trained: "all", or "last
    block": what comes before the last block keeps its weights and its batch norm's statistics (as where Zhong et al.,
    2021, train on Places-LT). Errors: ValueError naming the argument, the file, or the parameters that do not fit.
    """

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        blocks: Sequence[int],
        in_channels: int = 3,
        width: int = 64,
        groups: int = 1,
        per_group: int = 64,
        weights: str = "",
        trained: Literal["all", "last block"] = "all",
    ) -> None:
        super().__init__()
        channels = checks.whole("width", width)
        self.conv1, self.bn1 = _normalized(checks.whole("in_channels", in_channels), channels, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for stage in range(STEPS):
            layers = []
            for index in range(blocks[stage]):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels, width * 2**stage, stride, groups, per_group))
                channels = width * 2**stage * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.out_features = channels
        self.trained = checks.choice("trained", trained, ("all", "last block"))
        self._start()
        if weights:
            load_weights(self, weights)
        if trained == "last block":
            self.requires_grad_(False)
            self.layer4[-1].requires_grad_(True)

    def _start(self) -> None:
        """Normal weights of variance 2 / fan_out (He et al., 2015)."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def train(self, mode: bool = True) -> ResNet:
        """As of any module, but what is not trained stays in evaluation mode."""
        super().train(mode and self.trained == "all")
        if self.trained == "last block":
            self.layer4[-1].train(mode)
        return self

    def forward(self, input: Tensor) -> Tensor:
        features = self.maxpool(F.relu(self.bn1(self.conv1(input))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return features.mean((2, 3))


def load_weights(network: nn.Module, file: str) -> None:
    """Load a state_dict from `file`; parameters that are missing or in excess (but those of `fc`) are an error."""
    if not Path(file).is_file():
        raise ValueError(f"weights must be a file with a state_dict, got {file!r}, which does not exist")
    stored = read_tensors(file)
    if not isinstance(stored, dict):
        raise ValueError(f"weights must hold a state_dict, got {type(stored).__name__} in {file!r}")
    stored = {name: value for name, value in stored.items() if not name.startswith("fc.")}
    expected = network.state_dict()
    # checkpoints older than torch 0.4.1 do not count the batches
    missing = [name for name in expected if name not in stored and not name.endswith("num_batches_tracked")]
    extra = [name for name in stored if name not in expected]
    other = [name for name in stored if name in expected and stored[name].shape != expected[name].shape]
    for what, names in (("lack", missing), ("have in excess", extra), ("have in another shape", other)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"weights must fit the network, but those of {file!r} {what} {', '.join(names[:3])}{more}")
    network.load_state_dict(stored, strict=False)


def resnet10(in_channels: int = 3, **options: Any) -> ResNet:
    """One block of two convolutions a stage: 512 features (as Liu et al., 2019, have it)."""
    return ResNet(Basic, (1, 1, 1, 1), in_channels, **options)


def resnet50(in_channels: int = 3, **options: Any) -> ResNet:
    """50 layers, 2,048 features (He et al., 2016)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, **options)


def resnet152(in_channels: int = 3, **options: Any) -> ResNet:
    """152 layers, 2,048 features (He et al., 2016)."""
    return ResNet(Bottleneck, (3, 8, 36, 3), in_channels, **options)


def resnext50(in_channels: int = 3, **options: Any) -> ResNet:
    """50 layers with 32 groups of 4 channels, 2,048 features (Xie et al., 2017)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, groups=32, per_group=4, **options)


def resnext152(in_channels: int = 3, **options: Any) -> ResNet:
    """152 layers with 32 groups of 4 channels, 2,048 features (Xie et al., 2017)."""
    return ResNet(Bottleneck, (3, 8, 36, 3), in_channels, groups=32, per_group=4, **options)


def resnext101(in_channels: int = 3, **options: Any) -> ResNet:
    """101 layers with 32 groups of 8 channels, 2,048 features (Xie et al., 2017): a teacher."""
    return ResNet(Bottleneck, (3, 4, 23, 3), in_channels, groups=32, per_group=8, **options)
