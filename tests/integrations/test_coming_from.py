"""docs/coming_from.md: each call of another library, or its formula, has the value of the call beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch import Tensor, nn

from lt_kernels import functional, heads, losses, priors, schedules

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "coming_from.md"
N, D, C, COUNTS = 12, 6, 5, [50, 20, 9, 4, 1]
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


Z, X, W, B = normal(N, C), normal(N, D), normal(C, D), normal(C)
Y, T, WEIGHT = torch.randint(C, (N,), generator=GENERATOR), normal(N, C).softmax(1), normal(C).exp()
COSINES = F.linear(F.normalize(X), F.normalize(W))


def head(loss: losses.Loss, kind: Any = heads.CosineHead, **options: Any) -> Tensor:
    made = kind(D, C, loss, **options).double()
    made.load_state_dict({"weight": W, "bias": B} if kind is heads.LinearHead else {"weight": W}, strict=False)
    return made(X, Y)


def metric_learning(name: str, **options: Any) -> Tensor:
    module = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    theirs = getattr(module, name)(C, D, **options).double()
    theirs.W = nn.Parameter(W.T.clone())
    return theirs(X, Y)


def ldam_drw(scale: float = 30.0) -> Tensor:
    """n^(-1/4), scaled to 0.5 for the rarest class, taken from the target's cosine (Cao et al., 2019)."""
    margin = torch.tensor(COUNTS, dtype=torch.float64) ** -0.25
    margin = 0.5 * margin / margin.max()
    return F.cross_entropy(scale * (COSINES - margin[Y][:, None] * F.one_hot(Y, C)), Y)


def reweighted() -> Tensor:
    """The class-balanced weights of the last epochs, which sum to the number of classes."""
    weight = 0.0001 / (1 - 0.9999 ** torch.tensor(COUNTS, dtype=torch.float64))
    return F.cross_entropy(Z, Y, weight / weight.sum() * C)


def deferred() -> Tensor:
    schedule, loss = schedules.DeferredReweighting(COUNTS, start_epoch=160, beta=0.9999), losses.CrossEntropyLoss()
    loss.set_weight(schedule(159))
    assert_close(loss(Z, Y), F.cross_entropy(Z, Y))
    loss.set_weight(schedule(160))
    return loss(Z, Y)


def smoothed() -> Tensor:
    log_p = Z.log_softmax(1)
    return (0.9 * -log_p.gather(1, Y[:, None])[:, 0] + 0.1 * -log_p.mean(1)).mean()


def focal() -> Tensor:
    p = Z.softmax(1).gather(1, Y[:, None])[:, 0]
    return ((1 - p) * -p.log()).mean()


def mixed() -> Tensor:
    dense = 0.7 * F.one_hot(Y, C).double() + 0.3 * F.one_hot(Y.flip(0), C).double()
    return losses.LDAMLoss(COUNTS)(COSINES, functional.MixedTarget.from_dense(dense))


def parts() -> Tensor:
    loss = losses.LDAMLoss(COUNTS)
    return 0.7 * loss(COSINES, Y) + 0.3 * loss(COSINES, Y.flip(0))


PRIOR = priors.log_prior(COUNTS)
offset_cross_entropy, linear_cross_entropy = functional.offset_cross_entropy, functional.linear_cross_entropy
LOGITS = F.linear(X, W, B)

# The other library's call as the document has it -> its value, or its formula, and ours.
ROWS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "F.cross_entropy(z, y)": (lambda: F.cross_entropy(Z, Y), lambda: offset_cross_entropy(Z, Y)),
    "F.cross_entropy(z, y, weight=w, label_smoothing=0.1)": (
        lambda: F.cross_entropy(Z, Y, weight=WEIGHT, label_smoothing=0.1),
        lambda: offset_cross_entropy(Z, Y, WEIGHT, label_smoothing=0.1),
    ),
    "F.cross_entropy(z, t)": (lambda: F.cross_entropy(Z, T), lambda: offset_cross_entropy(Z, T)),
    "F.cross_entropy(z + log_prior, y)": (
        lambda: F.cross_entropy(Z + PRIOR, Y),
        lambda: torch.stack([offset_cross_entropy(Z, Y, offset=PRIOR), losses.BalancedSoftmaxLoss(COUNTS)(Z, Y)]),
    ),
    "F.cross_entropy(F.linear(x, W, b), y)": (
        lambda: F.cross_entropy(LOGITS, Y),
        lambda: linear_cross_entropy(X, W, Y, linear_bias=B),
    ),
    "F.cross_entropy(30.0 * F.linear(F.normalize(x), F.normalize(W)), y)": (
        lambda: F.cross_entropy(30.0 * COSINES, Y),
        lambda: functional.cosine_margin_cross_entropy(X, W, Y, scale=30.0),
    ),
    "nn.Linear(d, C)": (lambda: F.cross_entropy(LOGITS, Y), lambda: head(losses.CrossEntropyLoss(), heads.LinearHead)),
    "CosFaceLoss(C, d, margin=0.35, scale=64)": (
        lambda: metric_learning("CosFaceLoss", margin=0.35, scale=64),
        lambda: head(losses.CosFaceLoss(0.35, 64.0)),
    ),
    "ArcFaceLoss(C, d, margin=28.6, scale=64)": (
        lambda: metric_learning("ArcFaceLoss", margin=28.6, scale=64),
        lambda: head(losses.ArcFaceLoss(math.radians(28.6), 64.0)),
    ),
    "NormalizedSoftmaxLoss(C, d, temperature=0.05)": (
        lambda: metric_learning("NormalizedSoftmaxLoss", temperature=0.05),
        lambda: head(losses.CrossEntropyLoss(), scale=1 / 0.05),
    ),
    "LDAMLoss(cls_num_list, max_m=0.5, s=30)": (
        ldam_drw,
        lambda: head(losses.LDAMLoss(COUNTS, max_margin=0.5, scale=30.0)),
    ),
    'train_rule == "DRW"': (reweighted, deferred),
    "FocalLoss(gamma=1.0)": (focal, lambda: losses.FocalLoss(1.0)(Z, Y)),
    "LabelSmoothingCrossEntropy(0.1)": (smoothed, lambda: losses.CrossEntropyLoss(label_smoothing=0.1)(Z, Y)),
    "SoftTargetCrossEntropy()": (
        lambda: -(T * Z.log_softmax(1)).sum(1).mean(),
        lambda: losses.CrossEntropyLoss()(Z, T),
    ),
    "Mixup(...)": (parts, mixed),
    "LigerCrossEntropyLoss(ignore_index=-100, label_smoothing=0.1)": (
        smoothed,
        lambda: losses.CrossEntropyLoss(ignore_index=-100, label_smoothing=0.1)(Z, Y),
    ),
    "LigerFusedLinearCrossEntropyLoss()(W, x, y, b)": (
        lambda: F.cross_entropy(LOGITS, Y),
        lambda: linear_cross_entropy(X, W, Y, linear_bias=B),
    ),
    "linear_cross_entropy(x, W, y, shift=1)": (
        lambda: F.cross_entropy(F.linear(X, W)[None, :-1].movedim(-1, 1), Y[None, 1:]),
        lambda: linear_cross_entropy(X[None], W, Y[None], shift=1),
    ),
}


def test_the_document_has_these_rows() -> None:
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [re.match(r"\| `([^`]+)`", line)[1] for line in lines] == list(ROWS)  # type: ignore[index]


@pytest.mark.parametrize("row", ROWS)
def test_both_have_one_value(row: str) -> None:
    theirs, ours = ROWS[row]
    expected, found = theirs(), ours()
    assert found.isfinite().all()
    assert_close(found, expected.detach().expand_as(found))
