"""CLIP's image encoder, frozen but for adapters: features of photographs for a head that is trained."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_kernels.core import checks

# ViT-B/16 (Radford et al., 2021; Dosovitskiy et al., 2021), by the names of the option `size`
SIZE = {"width": 768, "layers": 12, "heads": 12, "patch": 16, "image": 224}
ADAPTED = ("q_proj", "v_proj")  # the products that low-rank adapters are put beside, as Hu et al. (2022) have it
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels that CLIP was trained with
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def _library(name: Literal["transformers", "peft"]) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"clip-vit-b16 needs {name}: pip install 'lt-kernels[clip]'") from error


class ClipImages(nn.Module):
    """Photographs to features, [N, 3, H, W] -> [N, width]: the class token of a vision transformer (Radford et al.,
    2021, CLIP ViT-B/16), after the last layer norm and before CLIP's projection.

    Its weights are frozen and it stays in evaluation mode; what is trained is, beside the queries' and the values'
    matrices of every layer, W + (alpha / rank) B A with A [rank, width] and B [width, rank], which begins at 0 (Hu et
    al., 2022, LoRA). Pictures of another size than the encoder's are scaled to it, bicubic.

    weights: a folder that transformers' save_pretrained wrote of a CLIP model (config.json, model.safetensors); ""
    draws random ones. rank: of the adapters; 0 is none. alpha: their factor's numerator. size: `width`, `layers`,
    `heads`, `patch` and `image` of an encoder without stored weights, as SIZE unless given. Errors: ImportError naming
    the library that is missing; ValueError naming the argument, the folder or the weights that it lacks.
    """

    pixel_mean, pixel_deviation = MEAN, DEVIATION

    def __init__(
        self,
        in_channels: int = 3,
        weights: str = "",
        rank: int = 8,
        alpha: float = 16.0,
        size: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"inputs must have 3 channels for CLIP, got {in_channels}")
        if weights and size:
            raise ValueError(f"size must be left out where weights are given, which have their own, got {dict(size)}")
        rank, alpha = checks.whole("rank", rank, 0), checks.number("alpha", alpha, 0.0)
        encoder = _stored(weights) if weights else _random(size or {})
        self.image, self.out_features = int(encoder.config.image_size), int(encoder.config.hidden_size)
        encoder.requires_grad_(False)
        self.encoder = _adapted(encoder, rank, alpha) if rank else encoder
        self.encoder.eval()

    def train(self, mode: bool = True) -> ClipImages:
        """As of any module, but the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != (self.image, self.image):
            input = F.interpolate(input, size=(self.image, self.image), mode="bicubic", align_corners=False)
        return self.encoder(pixel_values=input).pooler_output


def _random(size: Mapping[str, int]) -> Any:
    """An encoder with random weights, from torch's global generator."""
    transformers = _library("transformers")
    for name in size:
        checks.choice("size", name, tuple(SIZE))
    values = {name: checks.whole(f"size.{name}", value) for name, value in {**SIZE, **size}.items()}
    for name, part in (("width", "heads"), ("image", "patch")):
        if values[name] % values[part]:
            raise ValueError(f"size.{name} must be a multiple of size.{part} = {values[part]}, got {values[name]}")
    config = transformers.CLIPVisionConfig(
        hidden_size=values["width"],
        intermediate_size=4 * values["width"],
        num_hidden_layers=values["layers"],
        num_attention_heads=values["heads"],
        patch_size=values["patch"],
        image_size=values["image"],
        attn_implementation="eager",  # fused attention may add its gradients up in another order each time
    )
    return transformers.CLIPVisionModel(config)


def _stored(folder: str) -> Any:
    """The image encoder of a stored CLIP model, in float32."""
    transformers = _library("transformers")
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"weights must be a folder of a CLIP model with its config.json, got {folder!r}")
    options = {"local_files_only": True, "output_loading_info": True, "attn_implementation": "eager"}
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that the text encoder is left out is no news
    try:
        encoder, info = transformers.CLIPVisionModel.from_pretrained(folder, dtype=torch.float32, **options)
    except Exception as error:  # a damaged file makes its readers raise errors of any kind
        raise ValueError(f"weights must be a folder of a CLIP model, got {folder!r}: {error}") from error
    finally:
        transformers.logging.set_verbosity(said)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"weights must have a whole image encoder, {folder!r} lacks {', '.join(missing[:3])}")
    return encoder


def _adapted(encoder: Any, rank: int, alpha: float) -> Any:
    """The encoder with low-rank adapters, the only parameters that have gradients."""
    peft = _library("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(ADAPTED))
    return peft.inject_adapter_in_model(config, encoder)
