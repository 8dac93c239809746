"""The values that may be drawn, the simplest first."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.registry import NAMED, of_cosine, takes

FUNCTIONS = ("offset", "linear", "cosine", "repulsion", "lade", "loss", "linear_head", "cosine_head")
ROWS = (1, 2, 3, 5, 7, 8, 9, 0, 15, 16, 17, 33)
CLASSES = (2, 3, 1, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
FEATURES = (2, 3, 1, 4, 7, 8, 9, 16, 17, 33, 64)
LARGE = (
    (2, 1024),
    (1, 1023),
    (3, 1025),
    (2, 2047),
    (1, 2048),
    (9, 2049),
    (32, 1024),
    (33, 1024),
    (16, 2048),
    (5, 4097),
)
LAYOUTS = ("dense", "transposed", "strided", "behind", "expanded", "apart", "channels last")
MARGINS: tuple[tuple[Any, ...], ...] = (
    ("CosFace", 0.35),
    ("ArcFace", 0.5),
    ("SphereFace", 4),
    ("LDAM", 0.5),
    ("DBM", 0.1, 1.0, 1.0, False),
    ("CosFace", -1.0),
    ("CosFace", 0.0),
    ("CosFace", 50.0),
    ("ArcFace", 0.0),
    ("ArcFace", math.pi),
    ("ArcFace", 1.6),
    ("SphereFace", 1),
    ("SphereFace", 2),
    ("SphereFace", 3),
    ("SphereFace", 9),
    ("SphereFace", 4, 0.5),
    ("SphereFace", 3, 1000.0),
    ("LDAM", 0.0),
    ("LDAM", 2.0),
    ("DBM", 0.3, 0.5, 5.0, True),
    ("DBM", math.pi, 1.0, 1.0, True),
    ("DBM", 1.0, 0.0, 0.0, False),
    ("DBM", 0.4, 0.5, 2.0, False, "all"),
    ("DBM", 1.5, 1.0, 1.0, True, "all"),
)
COSINE = tuple(name for name in NAMED if of_cosine(name))
WEIGHTED = tuple(name for name in NAMED if takes(name, "weight"))
SETTINGS = {name: loss.settings for name, loss in NAMED.items()}
REGULARISERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "repulsion": {"threshold": (0.4, -1.0, 0.0, 0.9, 1.0, 2.0), "project": (True, False, "raw")},
    "lade": {"lam": (0.1, 0.0, 2.0), "importance": ("class", "sample"), "classes": ("all", "present")},
}
