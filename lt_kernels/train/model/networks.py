"""The built-in networks: inputs to features; the classifier is a head of `lt_kernels.heads`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData
from lt_kernels.train.model import resnet
from lt_kernels.train.model.clip import ClipImages
from lt_kernels.train.model.deeplab import DeepLab
from lt_kernels.train.model.own import own_network
from lt_kernels.train.model.timm_images import PREFIX, TimmImages
from lt_kernels.train.model.unet import UNet
from lt_kernels.train.model.wrappers import Pixels


def _kaiming(module: nn.Module) -> None:
    """Normal weights of variance 2 / fan_in (He et al., 2015), biases zero."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut without parameters: [N, in, H, W] -> [N, out, H / stride, W / stride].

    Where the shapes differ, the shortcut takes every second pixel and pads the channels with zeros on both sides
    ("option A" of He et al., 2016).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.missing = stride, out_channels - in_channels

    def forward(self, input: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(input)))))
        shortcut = input[:, :, :: self.stride, :: self.stride]
        if self.missing:
            before = self.missing // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.missing - before))
        return F.relu(residual + shortcut)


class ResNet32(nn.Module):
    """The 32-layer residual network for small images, [N, channels, H, W] -> features [N, 4 * width * pool**2].

    Three stages of `blocks` blocks (9 make ResNet-56) with `width`, 2 and 4 times `width` channels (16, 32, 64), the
    last two halving the image, and the mean over what is left (He et al., 2016, section 4.2; the network of Cao et al.,
    2019). With `pool` above 1 the mean is taken in each of `pool` x `pool` cells, so that features tell where in the
    image something is, as characters need it; the sides of the last map must be multiples of `pool`. `stride` is that
    of the first convolution: 2 halves the image once more.
    """

    def __init__(self, in_channels: int = 3, width: int = 16, blocks: int = 5, pool: int = 1, stride: int = 1) -> None:
        super().__init__()
        in_channels, width = checks.whole("in_channels", in_channels), checks.whole("width", width)
        self.pool = checks.whole("pool", pool)
        self.conv1 = nn.Conv2d(in_channels, width, 3, checks.whole("stride", stride), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        layers, channels = [], width
        for stage in range(3):
            for block in range(checks.whole("blocks", blocks)):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*layers)
        self.out_features = channels * self.pool**2
        _kaiming(self)

    def check_sides(self, height: int, width: int) -> None:
        """Raise unless the last map of an image of these sides falls into whole cells."""
        last = [-(-side // (4 * self.conv1.stride[0])) for side in (height, width)]  # each halving rounds up
        if any(side % self.pool for side in last):
            shown = " x ".join(map(str, last))
            raise ValueError(f"pool must divide the sides of the last map, {shown}, got {self.pool}")

    def forward(self, input: Tensor) -> Tensor:
        last = self.blocks(F.relu(self.bn1(self.conv1(input))))  # [N, 4 * width, H / 4, W / 4]
        if self.pool == 1:
            return last.mean((2, 3))
        self.check_sides(*input.shape[2:])
        cells = last.unflatten(3, (self.pool, -1)).unflatten(2, (self.pool, -1))
        return cells.mean((3, 5)).flatten(1)


class MLP(nn.Module):
    """Linear layers of `hidden` units, each with a ReLU: [N, ...] flattened to in_features -> [N, hidden[-1]].

    Without a layer the features are the numbers themselves, [N, in_features].
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        hidden = [checks.whole("hidden", units) for units in hidden]
        widths = [checks.whole("in_features", in_features), *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, hidden):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1]
        _kaiming(self)

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input.flatten(1))


class WordNetwork(nn.Module):
    """Features of a word's neighbours: ids int [N, places] below num_words -> [N, features].

    The neighbours' embeddings are laid side by side (combine="concat", as Bengio et al., 2003), or summed after each
    place has weighted every coordinate (combine="sum", the log-bilinear form of Mnih and Kavukcuoglu, 2013); a hidden
    layer with a ReLU follows.
    """

    def __init__(
        self,
        num_words: int,
        places: int,
        embedding: int = 64,
        features: int = 128,
        combine: Literal["concat", "sum"] = "concat",
    ) -> None:
        super().__init__()
        checks.choice("combine", combine, ("concat", "sum"))
        places, embedding = checks.whole("places", places), checks.whole("embedding", embedding)
        self.embedding = nn.Embedding(checks.whole("num_words", num_words), embedding)
        self.place_weight = nn.Parameter(torch.ones(places, embedding)) if combine == "sum" else None
        joined = embedding if combine == "sum" else places * embedding
        self.hidden = nn.Linear(joined, checks.whole("features", features))
        self.out_features = features
        _kaiming(self)
        if combine == "sum":
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(places))  # the sum has variance one

    def forward(self, input: Tensor) -> Tensor:
        words = self.embedding(input)  # [N, places, embedding]
        joined = words.flatten(1) if self.place_weight is None else (words * self.place_weight).sum(1)
        return F.relu(self.hidden(joined))


Maker = Callable[..., nn.Module]


def _of_channels(make: Maker) -> Maker:
    return lambda data, **options: make(data.train[0].shape[1], **options)


def _resnet32(data: LongTailedData, **options: Any) -> ResNet32:
    network = ResNet32(data.train[0].shape[1], **options)
    network.check_sides(*data.train[0].shape[2:])
    return network


def _mlp(data: LongTailedData, **options: Any) -> MLP:
    return MLP(math.prod(data.train[0].shape[1:]), **options)


def _words(data: LongTailedData, **options: Any) -> WordNetwork:
    return WordNetwork(data.num_words, data.train[0].shape[1], **options)


# By name: the kind of inputs, and what makes the network for a data set.
NETWORKS: dict[str, tuple[str, Maker]] = {
    "mlp": ("image", _mlp),
    "resnet32": ("image", _resnet32),
    "resnet10": ("image", _of_channels(resnet.resnet10)),
    "resnet50": ("image", _of_channels(resnet.resnet50)),
    "resnet152": ("image", _of_channels(resnet.resnet152)),
    "resnext50": ("image", _of_channels(resnet.resnext50)),
    "resnext152": ("image", _of_channels(resnet.resnext152)),
    "resnext101": ("image", _of_channels(resnet.resnext101)),
    "clip-vit-b16": ("image", _of_channels(ClipImages)),
    "words": ("words", _words),
    "unet": ("scene", _of_channels(UNet)),
    "deeplabv3plus": ("scene", _of_channels(DeepLab)),
}


def _known(name: str) -> tuple[str, Maker]:
    """The kind of inputs, and what makes the network `name`."""
    if isinstance(name, str) and name.startswith(PREFIX):
        return "image", lambda data, **options: TimmImages(data.train[0].shape[1], name[len(PREFIX) :], **options)
    checks.choice("name", name, (*NETWORKS, f"{PREFIX}NAME"))
    return NETWORKS[name]


def build_network(name: str | Mapping[str, Any], data: LongTailedData, **options: Any) -> nn.Module:
    """Return the network `name`, one of NETWORKS, timm:NAME or {class_path, init_args}, for the inputs of `data`, with
    attribute `out_features`.

    Options are those of MLP (hidden), ResNet32 (width, blocks, pool, stride), WordNetwork (embedding, features,
    combine), UNet (width, depth), DeepLab (channels, width, weights), resnet.ResNet (width, weights, trained),
    ClipImages (weights, rank, alpha, size), TimmImages (weights, pretrained, and those of timm) and `own_network`
    (out_features). Where the data name their pixels' mean and deviation, the network begins with that step; CLIP and
    stored networks of timm have their own. Weights are drawn from torch's global generator. Errors: ImportError naming
    a library that is missing; ValueError for an unknown name, a network that does not fit the data's input_kind or an
    option out of range; TypeError naming an option that the network does not have.
    """
    if not isinstance(name, str):
        return own_network(name, data, **options)
    kind, make = _known(name)
    if data.input_kind != kind:
        fitting = [known for known, (fits, _) in NETWORKS.items() if fits == data.input_kind]
        raise ValueError(f"name must be one of {fitting} for the {data.input_kind} inputs of {data.name}, got {name!r}")
    network = make(data, **options)
    own: Any = getattr(network, "pixel_mean", None)
    if own and not data.pixel_mean:
        raise ValueError(
            f"name must be of a network that takes numbers for {data.name}, got {name!r}, which takes pixels in 0..1"
        )
    if not data.pixel_mean:
        return network
    mean, deviation = (own, network.pixel_deviation) if own else (data.pixel_mean, data.pixel_deviation)
    return Pixels(network, mean, deviation)
