"""Generated folders of the layout of Cityscapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lt_kernels.data.cityscapes import CLASSES

IDS = (*CLASSES, 0, 6)  # and two ids that are ignored


def write_streets(root: Path, train: int = 3, val: int = 2, height: int = 32, width: int = 64) -> Path:
    """Random pictures and label ids, each of IDS in every map; return `root`."""
    pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for index in range(count):
            city = f"city{index % 2}"
            name = f"{city}_{index:06}_000019"
            ids = np.resize(np.array(IDS, np.uint8), (height, width))
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            pixels[..., 0] = ids * 7  # what a network can learn from
            for kind, end, array in (
                ("leftImg8bit", "leftImg8bit", pixels),
                ("gtFine", "gtFine_labelIds", random.permutation(ids)),
            ):
                file = root / kind / part / city / f"{name}_{end}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pillow.fromarray(array).save(file)
    return root
