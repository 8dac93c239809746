"""The named losses, declared once: what the benchmarks, the tests and the tables of the documents know of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import eager
from lt_kernels import losses
from tests import published
from tests.published import own_of

INF = torch.inf
OF_FEATURES = ("EstimatedOffsetLoss",)  # called with features and class weights; all others with logits or cosines


class Named(NamedTuple):
    """What is known of one of `lt_kernels.losses`; all of it is written without the package.

    eager: as training code has it, with the default settings; of what it names among logits or cosine, target and
        class_counts.
    published: of input, target, class counts and every setting, in float64, from tests/published.py.
    terms: of the class counts and every setting, what the loss sets: offset, margin (its name and numbers), scale,
        weight, gamma, average, smoothing (docs/math.md, section 10). What is added to the loss is not said here.
    cells: its line in that section's table: offset, margin, weight, gamma, smoothing, source.
    settings: the values to test with: first the default, then one that the tests of all losses take.
    """

    eager: Callable[..., Any]
    published: Callable[..., Tensor]
    terms: Callable[..., dict[str, Any]]
    cells: tuple[str, str, str, str, str, str]
    settings: Mapping[str, tuple[Any, ...]] = {}


def log_prior(n: Tensor, tau: float = 1.0) -> Tensor:
    """tau log p_c; a class without samples is not there."""
    return torch.where(n > 0, tau * torch.log(torch.where(n > 0, n, 1.0) / n.sum()), -INF)


def of_cosines(c: Tensor, y: Tensor, own: Tensor, scale: float, **tables: Any) -> Tensor:
    """Cross-entropy of the scaled cosines with the target's replaced."""
    return published.cross_entropy(scale * published.replace(c, y, own), y, **tables)


def ldam(c: Tensor, y: Tensor, n: Tensor, max_margin: float, scale: float) -> Tensor:
    """cos(theta) - m_y."""
    return of_cosines(c, y, own_of(c, y) - published.ldam_margin(n, max_margin)[y], scale)


def dbm_tables(n: Tensor, base: str) -> dict[str, Tensor]:
    """What DBM takes over from balanced softmax, or from class-balanced weights."""
    return {"bs": {"offset": log_prior(n)}, "cb": {"weight": published.class_balanced_weight(n, 0.9999)}}.get(base, {})


def dbm(
    c: Tensor,
    y: Tensor,
    n: Tensor,
    max_margin: float,
    tau: float,
    instance: float,
    scale: float,
    base: str,
    guard: bool,
    applies: str,
) -> Tensor:
    """cos(theta + m_y (1 + lambda h d))."""
    own = published.dbm(c, y, published.dbm_margin(n, max_margin, tau), instance, guard, applies)
    return of_cosines(c, y, own, scale, **dbm_tables(n, base))


def lade(z: Tensor, y: Tensor, n: Tensor, alpha: float, lam: float, importance: str, classes: str) -> Tensor:
    """Balanced softmax and alpha times the regulariser."""
    return published.balanced_softmax(z, y, n) + alpha * published.lade_regularizer(z, y, n, lam, importance, classes)


def smoothed(z: Tensor, y: Tensor, n: Tensor, spread: str, **given: Any) -> Tensor:
    """Label-aware smoothing."""
    return published.label_aware(z, y, published.label_aware_smoothing(n, **given), spread)


def smoothing(n: Tensor, spread: str, **given: Any) -> Tensor:
    """The smoothing of each class; e over the others alone is e C / (C - 1) over all."""
    return published.label_aware_smoothing(n, **given) * (1.0 if spread == "all" else len(n) / (len(n) - 1))


SCALE_30, SCALE_64 = (30.0, 12.0, 1.0, 64.0), (64.0, 9.0, 1.0)
NAMED: dict[str, Named] = {
    "CrossEntropyLoss": Named(
        eager.cross_entropy,
        lambda z, y, n: published.cross_entropy(z, y),
        lambda n: {},
        ("-", "-", "given", "-", "given", ""),
    ),
    "BalancedSoftmaxLoss": Named(
        eager.balanced_softmax,
        published.balanced_softmax,
        lambda n: {"offset": log_prior(n)},
        (r"$\log p_c$", "-", "-", "-", "-", "Ren et al., 2020"),
    ),
    "LogitAdjustmentLoss": Named(
        eager.balanced_softmax,
        published.logit_adjustment,
        lambda n, tau: {"offset": log_prior(n, tau)},
        (r"$\tau \log p_c$", "-", "-", "-", "-", "Menon et al., 2021"),
        {"tau": (1.0, 1.5, 0.0, 3.0)},
    ),
    "ARBLoss": Named(
        eager.balanced_softmax,
        lambda z, y, n, counts: published.arb(z, y, n if counts == "global" else y.bincount(minlength=len(n)).double()),
        lambda n, counts: {"offset": log_prior(n)},
        (r"$\log p_c$, or $\log N_c$ of the batch", "-", "-", "-", "-", "ARB-Loss, 2022"),
        {"counts": ("global", "batch")},
    ),
    "FocalLoss": Named(
        eager.focal,
        lambda z, y, n, gamma: published.focal(z, y, gamma),
        lambda n, gamma: {"gamma": gamma, "average": "batch"},
        ("-", "-", "given", "given", "-", "Lin et al., 2017"),
        {"gamma": (2.0, 1.5, 0.0, 0.5, 1.0, 5.0)},
    ),
    "ClassBalancedLoss": Named(
        eager.class_balanced,
        published.class_balanced,
        lambda n, beta, gamma, average, normalize: {
            "weight": published.class_balanced_weight(n, beta, normalize),
            "gamma": gamma,
            "average": average,
        },
        ("-", "-", r"$(1 - \beta) / (1 - \beta^{n_c})$, of sum $C$", "given", "-", "Cui et al., 2019"),
        {
            "beta": (0.9999, 0.99, 0.0, 0.9, 0.999999),
            "gamma": (0.0, 0.5, 2.0),
            "average": ("weighted", "batch"),
            "normalize": (True, False),
        },
    ),
    "LDAMLoss": Named(
        eager.ldam,
        ldam,
        lambda n, max_margin, scale: {"margin": ("LDAM", max_margin), "scale": scale},
        ("-", r"$\cos\theta - m_c$, $m_c \propto n_c^{-1/4}$", "given (DRW)", "-", "-", "Cao et al., 2019"),
        {"max_margin": (0.5, 0.3, 0.0, 2.0), "scale": SCALE_30},
    ),
    "DBMLoss": Named(
        lambda cosine, target, class_counts: eager.dbm(cosine, target, class_counts),
        dbm,
        lambda n, max_margin, tau, instance, scale, base, guard, applies: {
            "margin": ("DBM", max_margin, tau, instance, guard, applies),
            "scale": scale,
            **dbm_tables(n, base),
        },
        (
            r'`base="bs"`: $\log p_c$',
            r"$\cos(\theta + \alpha)$, $m_c \propto n_c^{-\tau}$",
            '`base="cb"`: class-balanced',
            *("-", "-", "DBM, 2025"),
        ),
        {
            "max_margin": (0.1, 0.3, 1.0, 3.0),
            "tau": (1.0, 0.5, 0.0),
            "instance": (1.0, 2.0, 0.0, 4.0),
            "scale": SCALE_30,
            "base": ("ce", "bs", "cb"),
            "guard": (False, True),
            "applies": ("hard", "all"),
        },
    ),
    "CosFaceLoss": Named(
        eager.cosface,
        lambda c, y, n, margin, scale: of_cosines(c, y, published.cosface(own_of(c, y), margin), scale),
        lambda n, margin, scale: {"margin": ("CosFace", margin), "scale": scale},
        ("-", r"$\cos\theta - m$", "-", "-", "-", "Wang et al., 2018"),
        {"margin": (0.35, 0.2, 0.0, -0.5, 5.0), "scale": SCALE_64},
    ),
    "ArcFaceLoss": Named(
        eager.arcface,
        lambda c, y, n, margin, scale: of_cosines(c, y, published.arcface(own_of(c, y), margin), scale),
        lambda n, margin, scale: {"margin": ("ArcFace", margin), "scale": scale},
        ("-", r"$\cos(\theta + m)$, guarded", "-", "-", "-", "Deng et al., 2019"),
        {"margin": (0.5, 1.1, 0.0, 2.0, 3.0), "scale": SCALE_64},
    ),
    "SphereFaceLoss": Named(
        eager.sphereface,
        lambda c, y, n, margin, scale, annealing: of_cosines(
            c, y, published.sphereface(own_of(c, y), margin, annealing), scale
        ),
        lambda n, margin, scale, annealing: {"margin": ("SphereFace", margin, annealing), "scale": scale},
        ("-", r"$\lvert x \rvert \psi(\theta)$, annealed", "-", "-", "-", "Liu et al., 2017"),
        {"margin": (4, 3, 1, 2, 7), "scale": (1.0, 2.0, 16.0), "annealing": (0.0, 0.7, 5.0, 1000.0)},
    ),
    "LADELoss": Named(
        eager.lade,
        lade,
        lambda n, **regulariser: {"offset": log_prior(n)},
        (r"$\log p_c$", "-", "-", "-", "-", "Hong et al., 2021"),
        {
            "alpha": (0.1, 0.5, 1.0, 0.0),
            "lam": (0.1, 0.3, 0.0, 2.0),
            "importance": ("class", "sample"),
            "classes": ("all", "present"),
        },
    ),
    "EstimatedOffsetLoss": Named(
        eager.EstimatedOffset,
        published.estimated_offset,
        lambda n, **regularisers: {},  # its offset comes from the class centres
        (r"$-\frac12 \mu_c \cdot w_c$", "-", "-", "-", "-", "Kim, Hong and Kim"),
        {
            "center_weight": (1.0, 0.1),
            "uniform_weight": (1.0, 0.5, 0.0),
            "use": ("subtract", "regularize", "predict"),
        },
    ),
    "LabelAwareSmoothingLoss": Named(
        eager.label_aware_smoothing,
        smoothed,
        lambda n, **given: {"smoothing": smoothing(n, **given)},
        ("-", "-", "-", "-", "rises with $n_c$", "Zhong et al., 2021"),
        {
            "head": (0.3, 0.4, 0.0, 0.5),
            "tail": (0.0, 0.1, 0.2, 0.4),
            "shape": ("concave", "exp", "linear", "convex"),
            "power": (1.0, 3.0, 0.5),
            "spread": ("all", "others"),
        },
    ),
}


def takes(name: str, argument: str) -> bool:
    """Whether the constructor of a loss has this argument."""
    return argument in inspect.signature(getattr(losses, name)).parameters


def of_cosine(name: str) -> bool:
    """Whether a loss is called with cosines."""
    return getattr(losses, name).input_kind == "cosine"


def made(name: str, class_counts: Any, **settings: Any) -> nn.Module:
    """A loss of logits or cosines; the counts go to one that takes them."""
    counted = takes(name, "class_counts") and settings.get("counts") != "batch"
    return getattr(losses, name)(*([class_counts] if counted else []), **settings)


def defaults(name: str) -> dict[str, Any]:
    """The settings that a loss has when nothing is said."""
    return {key: values[0] for key, values in NAMED[name].settings.items()}


def example(name: str) -> dict[str, Any]:
    """Settings of which none is the default."""
    return {key: values[1] for key, values in NAMED[name].settings.items()}
