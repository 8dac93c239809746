"""Augmentations of kornia by their names: whole batches of images, drawn from torch's generator as ours are."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lt_kernels.integrations.libraries import library
from lt_kernels.system.spelling import did_you_mean

PREFIX = "kornia:"


def augmented(name: str, images: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Images [N, channels, H, W] in 0..1 after the augmentation kornia:NAME with these options.

    Errors: ImportError naming the library; ValueError naming what is allowed.
    """
    return _made(name.removeprefix(PREFIX), json.dumps(dict(options), sort_keys=True))(images)


def names() -> dict[str, type]:
    """The classes of kornia that change images alone: no videos, and no mixing, which needs the targets."""
    augmentation, auto = (library(f"kornia.augmentation{part}") for part in ("", ".auto"))
    kinds = (augmentation.AugmentationBase2D, auto.PolicyAugmentBase)
    found = {name: kind for module in (augmentation, auto) for name, kind in vars(module).items()}
    return {
        name: kind
        for name, kind in sorted(found.items())
        if isinstance(kind, type) and issubclass(kind, kinds) and "Base" not in name
    }


@functools.lru_cache(maxsize=8)
def _made(name: str, options: str) -> Any:
    """The augmentation, which is made once; it keeps nothing that its next batch would depend on."""
    known = names()
    if name not in known:
        allowed = ", ".join(known)
        raise ValueError(f"NAME of {PREFIX}NAME must be one of {allowed}, got {name!r}{did_you_mean(name, known)}")
    try:
        return known[name](**json.loads(options))
    except Exception as error:  # each of them checks its options in its own way
        raise ValueError(f"augment_options must be those of kornia's {name}, got {options}: {error}") from error
