"""Jacobians taken many rows at once are those that are taken row by row, of every function, loss and head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from every_loss import BARE, COUNTS, HEADS, PLAIN, TARGET, C, D, N, input_of
from helpers import normal
from tolerances import assert_close
from torch import Tensor
from torch.autograd.functional import jacobian

from lt_kernels import functional as L

Function = Callable[[Tensor], Tensor]
IGNORED = TARGET.masked_fill(torch.arange(N) == 2, -100)
LOGITS, FEATURES = normal(N, C, seed=4, dtype=torch.float64), normal(N, D, seed=5, dtype=torch.float64)
WEIGHTS = normal(C, D, seed=6, dtype=torch.float64)
MARGINS = [None, L.CosFace(), L.ArcFace(), L.SphereFace(3), L.LDAM(torch.tensor(COUNTS)), L.DBM(torch.tensor(COUNTS))]


def functions(reduction: L.Reduction) -> dict[str, tuple[Function, Tensor]]:
    """Of logits, features or class weights, by name, with where the Jacobian is taken."""
    mixed, shares = L.MixedTarget(TARGET, TARGET.flip(0), 0.3), LOGITS.softmax(1)
    found: dict[str, tuple[Function, Tensor]] = {
        "plain": (lambda z: L.offset_cross_entropy(z, IGNORED, reduction=reduction), LOGITS),
        "smooth": (lambda z: L.offset_cross_entropy(z, IGNORED, label_smoothing=0.1, reduction=reduction), LOGITS),
        "focal": (lambda z: L.offset_cross_entropy(z, IGNORED, focal_gamma=2.0, reduction=reduction), LOGITS),
        "mixed": (lambda z: L.offset_cross_entropy(z, mixed, reduction=reduction), LOGITS),
        "shares": (lambda z: L.offset_cross_entropy(z, shares, reduction=reduction), LOGITS),
        "features": (lambda x: L.linear_cross_entropy(x, WEIGHTS, IGNORED, reduction=reduction), FEATURES),
        "weights": (lambda w: L.linear_cross_entropy(FEATURES, w, IGNORED, reduction=reduction), WEIGHTS),
        "repulsion": (lambda w: L.logit_weight_repulsion(w, threshold=-0.5, reduction=reduction), WEIGHTS),
    }
    for margin in MARGINS:

        def cosine(x: Tensor, w: Tensor, margin: L.Margin | None = margin) -> Tensor:
            return L.cosine_margin_cross_entropy(x, w, IGNORED, margin=margin, reduction=reduction)

        found[f"{type(margin).__name__} of features"] = (lambda x, cosine=cosine: cosine(x, WEIGHTS), FEATURES)
        found[f"{type(margin).__name__} of weights"] = (lambda w, cosine=cosine: cosine(FEATURES, w), WEIGHTS)
    return found


def modules() -> dict[str, tuple[Function, Tensor]]:
    """Every loss, and the heads of one input whose state a call leaves alone."""
    found: dict[str, tuple[Function, Tensor]] = {}
    for name, build in {**PLAIN, **BARE}.items():
        loss = build()
        found[name] = (lambda z, loss=loss: loss(z, TARGET), input_of(loss, torch.float64))
    for name in ("linear bs", "linear lade", "cosine ldam", "cosine dbm"):
        head = HEADS[name]().double()
        found[name] = (lambda x, head=head: head(x, TARGET), FEATURES)
    return found


CASES = {f"{name}, {how}": case for how in ("none", "mean", "sum") for name, case in functions(how).items()} | modules()


@pytest.mark.parametrize("name", CASES)
def test_rows_at_once_are_rows_one_by_one(name: str) -> None:
    function, place = CASES[name]
    exact = jacobian(function, place)
    leaf = place.clone().requires_grad_()
    value = function(leaf)
    each = torch.eye(value.numel(), dtype=torch.float64).reshape(-1, *value.shape)
    (batched,) = torch.autograd.grad(value, leaf, each, is_grads_batched=True)
    assert_close(batched.reshape(exact.shape), exact, name="is_grads_batched")
    assert_close(jacobian(function, place, vectorize=True), exact, name="vectorize")
    assert_close(torch.func.jacrev(function)(place), exact, name="jacrev")
