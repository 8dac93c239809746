"""Any network of timm by its name: photographs to features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lt_kernels.core import checks
from lt_kernels.integrations.libraries import library
from lt_kernels.system.spelling import did_you_mean

PREFIX = "timm:"
OURS = ("num_classes", "in_chans", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "features_only")


class TimmImages(nn.Module):
    """A network of timm without its classifier: images [N, channels, H, W] to features [N, out_features].

    Images of another size than `img_size`, or than a network with a fixed size has, are scaled to it, bicubic.
    Attention is computed step by step, because fused attention may add its gradients up in another order each time.

    name: of `timm.list_models()`, a tag of its weights after a dot if wanted ("resnet50.a1_in1k"). weights: a file that
    `torch.save` or safetensors wrote of the network's state; its classifier is left out, and what depends on the image
    size or the channels is fitted by timm. pretrained: have timm fetch the weights of the tag. img_size: the side of
    the images, for a network that is made for one. Further options are those of `timm.create_model`.

    Errors: ImportError naming what is missing; ValueError naming the argument, or weights that do not fit; TypeError
    naming an option that the network does not have.
    """

    def __init__(
        self, in_channels: int, name: str, weights: str = "", pretrained: bool = False, **options: Any
    ) -> None:
        super().__init__()
        pretrained = checks.flag("pretrained", pretrained)
        for key in OURS:
            if key in options:
                raise TypeError(f"{key} must be left out, it is set for the data or by weights, got {options[key]!r}")
        if weights and pretrained:
            raise ValueError(f"pretrained must be False where weights are given, got True and {weights!r}")
        if weights and not Path(weights).is_file():
            raise ValueError(f"weights must be a file with a network's state, got {weights!r}")
        for side in _pair(options.get("img_size", 1)):
            checks.whole("img_size", side)
        network = _created(name, weights, pretrained, in_chans=in_channels, **options)
        self.out_features = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.size = _size(network, options.get("img_size"))
        own = network.default_cfg
        known = (weights or pretrained) and len(own["mean"]) == in_channels
        self.pixel_mean, self.pixel_deviation = (own["mean"], own["std"]) if known else ((), ())
        for part in network.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False  # type: ignore[assignment]
        self.network = network

    def forward(self, input: Tensor) -> Tensor:
        if self.size is not None and tuple(input.shape[2:]) != self.size:
            input = F.interpolate(input, size=self.size, mode="bicubic", align_corners=False)
        return self.network(input)


def _library() -> Any:
    try:
        return library("timm", "vision")
    except RuntimeError as error:  # torchvision without its compiled part, beside a CPU build of torch
        raise ImportError(f"timm cannot be imported, as torchvision does not fit this torch: {error}") from error


def _created(name: str, weights: str, pretrained: bool, **options: Any) -> Any:
    """The network of that name without a classifier, with random weights or stored ones."""
    timm = _library()
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ValueError(f"name must be {PREFIX}NAME with a NAME of timm.list_models(), got {PREFIX + name!r}{hint}")
    if weights:
        options["pretrained_cfg_overlay"] = {"file": weights, "custom_load": weights.endswith(".npz")}
    try:
        return timm.create_model(name, pretrained=pretrained or bool(weights), num_classes=0, **options)
    except (TypeError, ImportError):
        raise
    except Exception as error:  # a damaged file makes its readers raise errors of any kind
        if not weights:
            raise ValueError(f"options must fit {name}: {error}") from error
        raise ValueError(f"weights must be the state of a {name}, got {weights!r}: {error}") from error


def _pair(size: Any) -> tuple[Any, Any]:
    """Height and width of a size that may be one number for both."""
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    return size, size


def _size(network: Any, asked: Any) -> tuple[int, int] | None:
    """Height and width of the images that a network is to have; None for one that takes any."""
    if asked is not None:
        return _pair(asked)
    _, height, width = network.default_cfg["input_size"]
    patches = getattr(network, "patch_embed", None)  # of a transformer, some of which take images of any size
    fixed = network.default_cfg.get("fixed_input_size") and getattr(patches, "strict_img_size", True)
    return (height, width) if fixed else None
