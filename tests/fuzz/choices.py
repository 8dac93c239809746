"""The values that may be drawn, the simplest first."""

from __future__ import annotations

import math
from typing import Any

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
    ("LDAM", 0.0),
    ("LDAM", 2.0),
    ("DBM", 0.3, 0.5, 5.0, True),
    ("DBM", math.pi, 1.0, 1.0, True),
    ("DBM", 1.0, 0.0, 0.0, False),
)
COSINE = ("LDAMLoss", "DBMLoss", "CosFaceLoss", "ArcFaceLoss", "SphereFaceLoss")
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "CrossEntropyLoss": {},
    "BalancedSoftmaxLoss": {},
    "LogitAdjustmentLoss": {"tau": (1.0, 0.0, 1.5, 3.0)},
    "ARBLoss": {"counts": ("global", "batch")},
    "FocalLoss": {"gamma": (2.0, 0.0, 0.5, 1.0, 5.0)},
    "ClassBalancedLoss": {
        "beta": (0.9999, 0.0, 0.9, 0.999999),
        "gamma": (0.0, 0.5, 2.0),
        "average": ("weighted", "batch"),
        "normalize": (True, False),
    },
    "LDAMLoss": {"max_margin": (0.5, 0.0, 2.0), "scale": (30.0, 1.0, 64.0)},
    "DBMLoss": {
        "max_margin": (0.1, 1.0, 3.0),
        "tau": (1.0, 0.0, 0.5),
        "instance": (1.0, 0.0, 4.0),
        "scale": (30.0, 1.0, 64.0),
        "base": ("ce", "bs", "cb"),
        "guard": (False, True),
    },
    "CosFaceLoss": {"margin": (0.35, 0.0, -0.5, 5.0), "scale": (64.0, 1.0)},
    "ArcFaceLoss": {"margin": (0.5, 0.0, 2.0, 3.0), "scale": (64.0, 1.0)},
    "SphereFaceLoss": {"margin": (4, 1, 2, 7), "scale": (1.0, 16.0)},
    "LADELoss": {
        "alpha": (0.1, 1.0, 0.0),
        "lam": (0.1, 0.0, 2.0),
        "importance": ("class", "sample"),
        "classes": ("all", "present"),
    },
    "EstimatedOffsetLoss": {
        "center_weight": (1.0, 0.1),
        "uniform_weight": (1.0, 0.0, 0.5),
        "use": ("subtract", "regularize"),
    },
    "LabelAwareSmoothingLoss": {
        "head": (0.3, 0.0, 0.5),
        "tail": (0.0, 0.2, 0.4),
        "shape": ("concave", "linear", "convex", "exp"),
        "power": (1.0, 0.5),
        "spread": ("all", "others"),
    },
}
REGULARISERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "repulsion": {"threshold": (0.4, -1.0, 0.0, 0.9, 1.0, 2.0), "project": (True, False)},
    "lade": {"lam": (0.1, 0.0, 2.0), "importance": ("class", "sample"), "classes": ("all", "present")},
}
