"""The goals for an H200: the calls that they are about, and how long each may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import CUDA_SHAPES, Case

BF16, FP32 = torch.bfloat16, torch.float32
COPY = 4.3e12  # bytes a second that an H200 copies, as measured on one


class Pairs(NamedTuple):
    """How many pairs of class weights are active: for each class so many, or a share of all."""

    each: int = 0
    share: float = 0.0

    def number(self, classes: int) -> float:
        """Pairs i < j."""
        return classes * (self.each or self.share * (classes - 1)) / 2


Call = Callable[[], tuple[Tensor, tuple[Tensor, ...]]]


class Goal(NamedTuple):
    """A call (its loss and leaves), the milliseconds that forward and backward may take, and where they come from."""

    title: str
    call: Call
    milliseconds: float
    source: str
    case: Case
    pairs: Pairs = Pairs()


def leaf(*sizes: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor without memory that gets a gradient."""
    return torch.empty(sizes, dtype=dtype, device="meta", requires_grad=True)


def _target(rows: int) -> Tensor:
    return torch.empty(rows, dtype=torch.int64, device="meta")


def logits(name: str, offset: bool) -> Call:
    """Offset cross-entropy of bfloat16 logits."""
    rows, classes, _ = CUDA_SHAPES[name]

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        from lt_kernels.functional import offset_cross_entropy

        shift = torch.empty(classes, device="meta") if offset else None
        given = leaf(rows, classes)
        return offset_cross_entropy(given, _target(rows), offset=shift), (given,)

    return call


def linear(name: str) -> Call:
    """Cross-entropy of bfloat16 features and class weights."""
    rows, classes, size = CUDA_SHAPES[name]

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        from lt_kernels.functional import linear_cross_entropy

        features, weight = leaf(rows, size), leaf(classes, size)
        return linear_cross_entropy(features, weight, _target(rows)), (features, weight)

    return call


def cosine(name: str) -> Call:
    """ArcFace of bfloat16 features and class weights."""
    rows, classes, size = CUDA_SHAPES[name]

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        from lt_kernels.functional import ArcFace, cosine_margin_cross_entropy

        features, weight = leaf(rows, size), leaf(classes, size)
        loss = cosine_margin_cross_entropy(features, weight, _target(rows), margin=ArcFace(0.5), scale=30.0)
        return loss, (features, weight)

    return call


def repulsion(name: str) -> Call:
    """Logit-weight repulsion of float32 class weights."""
    _, classes, size = CUDA_SHAPES[name]

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        from lt_kernels.functional import logit_weight_repulsion

        weight = leaf(classes, size, dtype=FP32)
        return logit_weight_repulsion(weight), (weight,)

    return call


def _copied(name: str) -> float:
    rows, classes, _ = CUDA_SHAPES[name]
    return 2 * rows * classes * BF16.itemsize / COPY / 0.9 * 1e3


TEN, PERCENT = Pairs(each=10), Pairs(share=0.01)
OF_LIGER = 26.0  # what Liger's chunked kernel is predicted to take at vocab; Cut Cross-Entropy without its filter 45
OFFSET, LINEAR, COSINE = "offset_cross_entropy", "linear_cross_entropy", "cosine_margin_cross_entropy"


def _case(operator: str, name: str, dtype: torch.dtype = BF16) -> Case:
    return Case(operator, name, *CUDA_SHAPES[name], dtype)


def _repulsion(name: str, milliseconds: float, pairs: Pairs) -> Goal:
    density, words = ("sparse", "10 active pairs a class") if pairs.each else ("dense", "1 % of pairs active")
    case = _case("logit_weight_repulsion", name, FP32)
    return Goal(f"repulsion, {name}, {density}", repulsion(name), milliseconds, words, case, pairs)


ROWS = _case(OFFSET, "vocab-4096")
GOALS = (
    Goal("offset CE, vocab-4096", logits("vocab-4096", True), _copied("vocab-4096"), "90 % of a copy", ROWS),
    Goal("CE, vocab-4096", logits("vocab-4096", False), _copied("vocab-4096"), "90 % of a copy", ROWS),
    Goal("linear, faces", linear("faces"), 30, "given", _case(LINEAR, "faces")),
    Goal("cosine, faces", cosine("faces"), 30, "given", _case(COSINE, "faces")),
    Goal("linear, vocab", linear("vocab"), OF_LIGER, "Liger's", _case(LINEAR, "vocab")),
    Goal("cosine, vocab", cosine("vocab"), OF_LIGER, "Liger's, without a margin", _case(COSINE, "vocab")),
    Goal("linear, inat", linear("inat"), 0.15, "given", _case(LINEAR, "inat")),
    Goal("cosine, inat", cosine("inat"), 0.15, "given", _case(COSINE, "inat")),
    _repulsion("lwr-inat", 0.5, TEN),
    _repulsion("lwr-100k", 15, TEN),
    _repulsion("lwr-inat", 1.5, PERCENT),
    _repulsion("lwr-100k", 100, PERCENT),
)
