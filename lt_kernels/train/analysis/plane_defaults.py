"""How methods are trained in the plane unless a setting says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lt_kernels.train.methods.build import find_method
from lt_kernels.train.methods.variants import variants_of

COSINE: Mapping[str, Any] = {"lr": 0.01, "epochs": 300}
SCALE = 8.0


def sees_directions(method: str) -> bool:
    """Whether the features' lengths are nothing to the method's head: one of cosines, and not SphereFace's, whose own
    scale is 1 because its logits grow with the features.
    """
    line = find_method(method)
    return line.head == "cosine" and line.defaults["scale"] > 1


def in_the_plane(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a recipe for a method, or a variant, with two features: for a head of cosines with another
    learning rate, more epochs and a smaller scale.

    The gradient of a cosine grows with the scale and falls with the feature's length, to which it is orthogonal. So a
    step lengthens the feature, and at the rates and scales of many features the first steps make all features so long
    that no later one turns them; hence the network's centred features. Classes pass each other on the circle slowly.
    """
    method = str(variants_of(settings).get(name, {}).get("method", name))
    if find_method(method).head != "cosine":
        return dict(settings)
    methods = dict(settings.get("methods") or {})
    if sees_directions(method):
        methods[method] = {"scale": SCALE, **(methods.get(method) or {})}
    return {**settings, **COSINE, "methods": methods}
