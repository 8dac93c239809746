"""The public functions: drop-in losses whose rows are three numbers (docs/math.md), and the regularisers."""

from lt_kernels.core.accuracy import Accuracy
from lt_kernels.functional.cross_entropy import cosine_margin_cross_entropy, linear_cross_entropy, offset_cross_entropy
from lt_kernels.functional.regularizers import lade_regularizer, logit_weight_repulsion
from lt_kernels.margins import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

__all__ = [
    "DBM",
    "LDAM",
    "Accuracy",
    "ArcFace",
    "CosFace",
    "MixedTarget",
    "SphereFace",
    "cosine_margin_cross_entropy",
    "lade_regularizer",
    "linear_cross_entropy",
    "logit_weight_repulsion",
    "offset_cross_entropy",
]
