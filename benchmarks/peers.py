"""Other people's losses, as competitors where they import: Liger, Cut Cross-Entropy and QuACK, which need a GPU, and
pytorch-metric-learning, plain torch for any device.

Imported only when they are measured. Each function takes the tensors of a problem that its signature names.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# cce drops gradients that it takes for negligible, as its authors ship it; cce-exact keeps them.
NAMES = ("liger", "cce", "cce-exact", "quack", "pml")
MODULES = {
    "liger": "liger_kernel",
    "cce": "cut_cross_entropy",
    "cce-exact": "cut_cross_entropy",
    "quack": "quack",
    "pml": "pytorch_metric_learning.losses",
}
ANYWHERE = ("pml",)  # who runs on a CPU too


@functools.cache
def absent(name: str) -> str:
    """Why a peer does not import here, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(_importing(name))
    except Exception as error:  # also what their own imports run into beside this torch
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""


def _importing(name: str) -> str:
    return "liger_kernel.transformers.cross_entropy" if name == "liger" else MODULES[name]


def function(name: str, operator: str, device: str) -> Callable[..., Tensor] | None:
    """The peer's form of an operator, or None where it has none or cannot run."""
    build = BUILDERS.get((name, operator))
    if build is None or (device != "cuda" and name not in ANYWHERE) or absent(name):
        return None
    return build()


def spoils(name: str, operator: str) -> bool:
    """Whether the peer leaves the gradient in the logits that it is given, so that it has to have its own."""
    return (name, operator) == ("liger", "cross_entropy")


def liger_rows() -> Callable[..., Tensor]:
    """Liger's cross-entropy of logits."""
    loss = importlib.import_module("liger_kernel.transformers.cross_entropy").LigerCrossEntropyLoss()
    return lambda logits, target: loss(logits, target)


def liger_offset() -> Callable[..., Tensor]:
    """The same of logits to which the offset is added first, as with F.cross_entropy."""
    rows = liger_rows()
    return lambda logits, target, offset: rows(logits + offset, target)


def liger_linear() -> Callable[..., Tensor]:
    """Liger's cross-entropy of features, by chunks of rows."""
    module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda input, linear_weight, target: loss(linear_weight, input, target)


def cce_linear(**options: Any) -> Callable[..., Tensor]:
    """Cut Cross-Entropy."""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda input, linear_weight, target: loss(input, linear_weight, target, **options)


def quack_rows() -> Callable[..., Tensor]:
    """QuACK's cross-entropy of logits."""
    loss = importlib.import_module("quack").cross_entropy
    return lambda logits, target: loss(logits, target, reduction="mean")


def quack_offset() -> Callable[..., Tensor]:
    """The same of logits to which the offset is added first."""
    rows = quack_rows()
    return lambda logits, target, offset: rows(logits + offset, target)


def quack_linear() -> Callable[..., Tensor]:
    """QuACK's cross-entropy of features, by chunks of rows."""
    loss = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return lambda input, linear_weight, target: loss(input, linear_weight, target)


def metric_learning(loss: str, **options: float) -> Callable[..., Tensor]:
    """A loss of pytorch-metric-learning on class weights that it is given; a margin of angles is in degrees there.

    Its ArcFace clamps the target's cosine to [-1, 1] before the arc cosine, which changes nothing within.
    """
    build = getattr(importlib.import_module(MODULES["pml"]), loss)

    @functools.cache
    def module(classes: int, features: int) -> Any:
        with torch.device("meta"):  # its own weights are not wanted
            made = build(classes, features, **options)
        del made.W  # a parameter, which would refuse a tensor that has a graph
        return made

    def run(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
        made = module(*linear_weight.shape)
        made.W = linear_weight.t()
        return made(input, target)

    return run


BUILDERS: dict[tuple[str, str], Callable[[], Callable[..., Tensor]]] = {
    ("liger", "cross_entropy"): liger_rows,
    ("liger", "offset_cross_entropy"): liger_offset,
    ("liger", "linear_cross_entropy"): liger_linear,
    ("cce", "linear_cross_entropy"): cce_linear,
    ("cce-exact", "linear_cross_entropy"): functools.partial(cce_linear, filter_eps=None),
    ("quack", "cross_entropy"): quack_rows,
    ("quack", "offset_cross_entropy"): quack_offset,
    ("quack", "linear_cross_entropy"): quack_linear,
    ("pml", "cosine_margin_cross_entropy"): functools.partial(
        metric_learning, "ArcFaceLoss", margin=math.degrees(0.5), scale=30.0
    ),
}
