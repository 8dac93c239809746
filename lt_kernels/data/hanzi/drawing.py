"""Images of characters, drawn from fonts when a batch asks for them: the same image for the same row."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_kernels.data.hanzi.fonts import Font
from lt_kernels.data.lazy import LazyRows

SIDE = 32  # pixels of an image
CANVAS = 2 * SIDE  # pixels of the drawing that it is made from
SIZES = (42, 58)  # the smallest and the largest font, in pixels of the drawing
SHIFT, SLANT, TURN = 5.0, 0.25, 0.12  # at most: pixels of the drawing, a shear, radians
NOISE = 0.08  # the largest standard deviation, of a white of 1
LEAST = 0.55  # of white: the faintest ink


class Glyphs(LazyRows):
    """Images uint8 [N, 1, 32, 32], white on black, of row i's character in a font.

    Position, size, slant, turn, stroke, ink and noise are drawn from a generator that begins with `seed` and the row's
    number. Rows are drawn as `LazyRows` says, by one thread: Pillow holds the interpreter's lock while it draws, so
    more threads would draw no more, and each would have faces of its own.
    """

    dtype = torch.uint8

    def __init__(self, labels: Tensor, characters: str, fonts: Sequence[Font], seed: int) -> None:
        super().__init__(1)
        self.labels, self.characters, self.fonts, self.seed = labels, characters, tuple(fonts), seed
        self._local = threading.local()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> Tensor:
        """One image, drawn here and now."""
        return torch.from_numpy(self.draw(row))[None]

    @property
    def shape(self) -> torch.Size:
        """[N, 1, 32, 32]."""
        return torch.Size((len(self), 1, SIDE, SIDE))

    def font_of(self, row: int) -> Font:
        """The font that a row is drawn with."""
        return self.fonts[int(self._chance(row).integers(len(self.fonts)))]

    def _chance(self, row: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, row])

    def draw(self, row: int) -> np.ndarray:
        """One image, uint8 [32, 32]."""
        from PIL import Image, ImageDraw, ImageFilter

        chance = self._chance(row)
        font = self.fonts[int(chance.integers(len(self.fonts)))]
        drawing = Image.new("L", (CANVAS, CANVAS))
        face = self._face(font, int(chance.integers(SIZES[0], SIZES[1] + 1)))
        middle = CANVAS / 2 + chance.uniform(-SHIFT, SHIFT, 2)
        ImageDraw.Draw(drawing).text(tuple(middle), self.characters[int(self.labels[row])], 255, font=face, anchor="mm")
        stroke = chance.uniform()
        if stroke < 0.3:  # thicker, or blurred as by a bad printer
            drawing = drawing.filter(ImageFilter.MaxFilter(3) if stroke < 0.15 else ImageFilter.BoxBlur(1))
        small = drawing.transform((SIDE, SIDE), Image.Transform.AFFINE, _tilted(chance), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32) * np.float32(chance.uniform(LEAST, 1.0))
        pixels += 255 * chance.uniform(0, NOISE) * chance.standard_normal(pixels.shape, np.float32)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def _face(self, font: Font, size: int) -> Any:
        """The font at a size: each thread opens its own, because a face of FreeType serves one thread at a time."""
        from PIL import ImageFont

        faces = self._local.__dict__.setdefault("faces", {})
        if (font, size) not in faces:
            faces[font, size] = ImageFont.truetype(
                font.path, size, index=font.index, layout_engine=ImageFont.Layout.BASIC
            )
        return faces[font, size]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_local"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())


def _tilted(chance: np.random.Generator) -> tuple[float, ...]:
    """The affine map from an image to the drawing: half the size, sheared and turned about the middle."""
    slant, turn = chance.uniform(-SLANT, SLANT), chance.uniform(-TURN, TURN)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = 2 * np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1.0, slant], [0.0, 1.0]])
    start = CANVAS / 2 - matrix @ np.full(2, SIDE / 2)
    return (*matrix[0].tolist(), float(start[0]), *matrix[1].tolist(), float(start[1]))
