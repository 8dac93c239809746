"""How methods are trained in the plane unless a setting says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lt_kernels.train.methods.build import find_method
from lt_kernels.train.methods.variants import variants_of

# Of the learning rates 0.003, 0.01 and 0.03 and the scales 8 and 16, those with the highest accuracy on the training
# set (mean over the classes, of ldam, dbm-bs and cosface on digits-lt, two seeds). 100 epochs are too few.
COSINE: Mapping[str, Any] = {"lr": 0.01, "epochs": 300}
SCALE = 16.0


def in_the_plane(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a recipe for a method, or a variant, with two features: for a head of cosines with another
    learning rate, more epochs and a smaller scale.

    The gradient of a cosine grows with the scale and falls with the feature's length, to which it is orthogonal. So a
    step lengthens the feature, and at the rates and scales of many features the first steps make all features so long
    that no later one turns them. Classes pass each other on the circle only slowly.
    """
    method = str(variants_of(settings).get(name, {}).get("method", name))
    line = find_method(method)
    if line.head != "cosine":
        return dict(settings)
    methods = dict(settings.get("methods") or {})
    if line.defaults["scale"] > SCALE:  # SphereFace's is 1: its logits grow with the features
        methods[method] = {"scale": SCALE, **(methods.get(method) or {})}
    return {**settings, **COSINE, "methods": methods}
