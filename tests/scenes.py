"""Small calls of every public function with every option, for what is asked of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from helpers import classes_of, counts_of, normal
from torch import Tensor

from benchmarks.registry import NAMED, OF_FEATURES, example, made, of_cosine
from lt_kernels import functional, losses, memory_budget
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

N, C, D = 6, 5, 3
TARGET, SECOND = torch.tensor([0, 3, 1, -100, 2, 0]), torch.tensor([3, 0, 2, 1, 2, 1])
BY_ROW = normal(N, seed=412).abs().index_fill(0, torch.tensor(1), 0.0)  # a weight for each row, one of them 0
WEIGHT, COUNTS = normal(C, seed=401).abs() + 0.1, counts_of(C, 402)
SOFT = normal(N, C, seed=403).softmax(1)


class Scene(NamedTuple):
    """A function of its differentiable inputs, and these inputs in float64."""

    function: Callable[..., Tensor]
    leaves: tuple[Tensor, ...]


def logits() -> Tensor:
    return normal(N, C, seed=404, spread=2.0)


def vectors() -> tuple[Tensor, Tensor]:
    return normal(N, D, seed=405), normal(C, D, seed=406)


def offset(*shape: int, missing: bool = False) -> Tensor:
    values = normal(*shape, seed=407)
    return values.index_fill(-1, torch.tensor(C - 1), -torch.inf) if missing else values


def of_logits(leaves: tuple[Tensor, ...] = (), target: Any = TARGET, **options: Any) -> Scene:
    """offset_cross_entropy, whose second leaf, where there is one, is the offset."""

    def call(input: Tensor, *rest: Tensor) -> Tensor:
        extra = {"offset": rest[0]} if rest else {}
        return functional.offset_cross_entropy(input, target, **extra, **options)

    return Scene(call, leaves or (logits(),))


def of_features(function: Any, *extra: str, target: Any = TARGET, budget: int | None = None, **options: Any) -> Scene:
    """linear_cross_entropy or cosine_margin_cross_entropy, with leaves for the extra arguments that are named."""
    values = {"linear_bias": normal(C, seed=408), "offset": offset(C), "missing": offset(C, missing=True)}
    names = ["offset" if name == "missing" else name for name in extra]

    def call(input: Tensor, linear_weight: Tensor, *rest: Tensor) -> Tensor:
        named = dict(zip(names, rest, strict=True))
        if budget is None:
            return function(input, linear_weight, target, **named, **options)
        with memory_budget(budget):
            return function(input, linear_weight, target, **named, **options)

    return Scene(call, (*vectors(), *(values[name] for name in extra)))


def of_places(function: Any, **options: Any) -> Scene:
    """The same of features [2, 3, d]."""
    input, linear_weight = vectors()
    target = TARGET.reshape(2, 3)
    return Scene(lambda x, w: function(x, w, target, **options), (input.reshape(2, 3, D), linear_weight))


def row_scenes() -> dict[str, Scene]:
    mixed = MixedTarget(TARGET, SECOND, 0.3)
    smoothing = torch.linspace(0.0, 0.5, C, dtype=torch.float64)
    shaped = torch.randint(C, (N, 2), generator=torch.Generator().manual_seed(409))
    return {
        "plain": of_logits(),
        "sum": of_logits(reduction="sum"),
        "none": of_logits(reduction="none"),
        "weight": of_logits(weight=WEIGHT),
        "ignore_index": of_logits(target=TARGET.clamp_min(0), ignore_index=1),
        "label_smoothing": of_logits(label_smoothing=0.2, weight=WEIGHT),
        "label_smoothing per class": of_logits(label_smoothing=smoothing),
        "focal": of_logits(focal_gamma=2.0),
        "focal below one": of_logits(focal_gamma=0.5, label_smoothing=0.1),
        "offset": of_logits((logits(), offset(C))),
        "offset by row": of_logits((logits(), offset(N, C))),
        "offset by target": of_logits((logits(), offset(1, C, C))),
        "missing": of_logits((logits(), offset(C, missing=True)), label_smoothing=0.1),
        "probabilities": of_logits((logits(), offset(C)), target=SOFT, weight=WEIGHT, label_smoothing=0.1),
        "mixed": of_logits(target=mixed, focal_gamma=1.0, label_smoothing=0.1, weight=WEIGHT),
        "one row": of_logits((normal(C, seed=410),), target=torch.tensor(2)),
        "many axes": of_logits((normal(N, C, 2, seed=411),), target=shaped, weight=WEIGHT),
        "lade": Scene(lambda z: functional.lade_regularizer(z, SECOND, COUNTS, lam=0.3), (logits(),)),
        "lade sample": Scene(
            lambda z: functional.lade_regularizer(z, SECOND, COUNTS, importance="sample", classes="present"),
            (logits(),),
        ),
    }


def repelled(**options: Any) -> Scene:
    return Scene(lambda w: functional.logit_weight_repulsion(w, **options), (vectors()[1],))


def feature_scenes() -> dict[str, Scene]:
    linear, cosine = functional.linear_cross_entropy, functional.cosine_margin_cross_entropy
    mixed, far = MixedTarget(TARGET, SECOND, 0.3), DBM(COUNTS, 0.9, tau=0.2, instance=2.0, guard=True)
    return {
        "linear": of_features(linear),
        "linear bias offset": of_features(linear, "linear_bias", "offset", weight=WEIGHT),
        "linear missing": of_features(linear, "missing", label_smoothing=0.1),
        "linear focal": of_features(linear, focal_gamma=1.5, label_smoothing=0.1, reduction="sum"),
        "linear probabilities": of_features(linear, target=SOFT, label_smoothing=0.1),
        "linear mixed": of_features(linear, target=mixed, reduction="none"),
        "linear slabs": of_features(linear, "offset", budget=24, label_smoothing=0.1),
        "cosine": of_features(cosine, scale=5.0),
        "cosface": of_features(cosine, margin=CosFace(0.3), scale=5.0, label_smoothing=0.1),
        "arcface": of_features(cosine, margin=ArcFace(0.5), scale=5.0, weight=WEIGHT),
        "sphereface": of_features(cosine, margin=SphereFace(4), scale=1.5),
        "sphereface annealed": of_features(cosine, margin=SphereFace(4, 1.5), scale=1.5),
        "sphereface annealed mixed": of_features(
            cosine, target=mixed, margin=SphereFace(3, torch.tensor(0.5)), scale=2.0
        ),
        "ldam": of_features(cosine, "offset", margin=LDAM(COUNTS), scale=5.0, reduction="none"),
        "dbm": of_features(cosine, "offset", margin=DBM(COUNTS, 0.3), scale=5.0),
        "dbm of all": of_features(cosine, "offset", margin=DBM(COUNTS, 0.5, 0.3, applies="all"), scale=5.0),
        "dbm guard": of_features(cosine, margin=far, scale=5.0, focal_gamma=1.0),
        "cosine mixed": of_features(cosine, target=mixed, margin=DBM(COUNTS, 0.3), scale=5.0),
        "cosine slabs": of_features(cosine, "missing", margin=ArcFace(0.3), scale=5.0, budget=24),
        "repulsion": repelled(threshold=0.1),
        "repulsion all": repelled(threshold=-1.0, reduction="none"),
        "repulsion raw": repelled(threshold=0.1, project="raw"),
        "repulsion fixed norms": repelled(threshold=0.1, project=False),
    }


def language_scenes() -> dict[str, Scene]:
    """Weights of rows, the z-loss, features of many dimensions, targets further on."""
    linear, cosine = functional.linear_cross_entropy, functional.cosine_margin_cross_entropy
    mixed = MixedTarget(TARGET, SECOND, 0.3)
    return {
        "sample weight": of_logits(sample_weight=BY_ROW, weight=WEIGHT, label_smoothing=0.1),
        "sample weight none": of_logits((logits(), offset(C)), sample_weight=BY_ROW, reduction="none"),
        "sample weight mixed": of_logits(target=mixed, sample_weight=BY_ROW, z_loss=0.1),
        "sample weight probabilities": of_logits((logits(), offset(C)), target=SOFT, sample_weight=BY_ROW, z_loss=0.1),
        "z-loss": of_logits((logits(), offset(C)), z_loss=0.2, weight=WEIGHT, focal_gamma=1.0),
        "shift": of_logits((normal(N, C, 4, seed=413),), target=torch.arange(4 * N).reshape(N, 4) % C, shift=1),
        "linear sample weight": of_features(linear, "offset", sample_weight=BY_ROW, z_loss=0.1, weight=WEIGHT),
        "linear sample weight slabs": of_features(linear, sample_weight=BY_ROW, z_loss=0.1, budget=24, reduction="sum"),
        "softcap": of_logits((logits(), offset(C)), softcap=1.5),
        "linear softcap": of_features(linear, "linear_bias", "offset", softcap=1.5, label_smoothing=0.1),
        "linear softcap slabs": of_features(linear, "linear_bias", softcap=1.5, budget=24),
        "linear many axes": of_places(linear, sample_weight=BY_ROW.reshape(2, 3), shift=1),
        "linear many axes none": of_places(linear, z_loss=0.1, reduction="none"),
        "cosine sample weight": of_features(cosine, margin=ArcFace(0.4), scale=5.0, sample_weight=BY_ROW, z_loss=0.1),
        "cosine many axes": of_places(cosine, margin=DBM(COUNTS, 0.3), scale=5.0, shift=2),
    }


def of_loss(loss: torch.nn.Module, cosines: bool = False) -> Scene:
    loss.double()
    return Scene(lambda z: loss(z, SECOND), (logits().tanh() if cosines else logits(),))


def loss_scenes() -> dict[str, Scene]:
    """Every named loss of logits or cosines, with settings that are not its defaults."""
    named = {
        name: of_loss(made(name, COUNTS, **example(name)), of_cosine(name)) for name in NAMED if name not in OF_FEATURES
    }
    return named | {
        "label aware": of_loss(losses.LabelAwareSmoothingLoss(COUNTS, 0.3, 0.1)),
        "lade loss": of_loss(losses.LADELoss(COUNTS)),
        "dbm loss": of_loss(losses.DBMLoss(COUNTS, base="bs", scale=5.0), cosines=True),
    }


def all_scenes() -> dict[str, Scene]:
    return row_scenes() | feature_scenes() | language_scenes() | loss_scenes()


def names() -> list[str]:
    return list(all_scenes())


def rows_of(scene: Scene, number: int) -> Tensor:
    """Class indices for a batch of the scene's size."""
    return classes_of(len(scene.leaves[0]), C, number)
