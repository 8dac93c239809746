"""How accurate a finished run is where classes are distributed otherwise, as trained and compensated for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.data.shift import ShiftedTest, shifted_tests
from lt_kernels.heads.scale import scale_of
from lt_kernels.posthoc import pc_softmax
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import find_method, method_options, run_options
from lt_kernels.train.methods.method import REPULSION_SUFFIX
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.readings import trained_head
from lt_kernels.train.run.build import effective
from lt_kernels.train.run.loading import load_run

Holds = Literal["source", "uniform", "root", "weighted", "cosines", "nothing"]
Cosines = Literal["leave", "scale"]

# Which class prior a model's logits hold, by what it was trained with: they estimate log p(x | c) + log of that prior.
SOURCE = (
    "ce",
    "zero-offset",
    "focal",
    "las",
    "ce-mixup",
    "ce-cutmix",
    "estimated-offset",
    "estimated-offset-no-uc",
    "uniform-offset",
)
COMPENSATED = (
    "bs",
    "la",
    "arb",
    "arb-batch",
    "arb-mixup",
    "arb-batch-mixup",
    "lade",
    "pc-softmax",
    "bcl",
    "gml",
    "ncl",
)
BALANCED = (
    "ce-balanced",
    "ce-progressive",
    "crt",
    "lws",
    "crt-mixup",
    "lws-mixup",
    "mislas",
)  # drawn so, at the end at least
ROOT = ("ce-sqrt",)
WEIGHTED = ("cb", "ce-drw", "focal-drw")
# The other heads of cosines have margins that grow with rarity or norms that their cosines do not show.
SCALED = {"ldam": "source", "ldam-drw": "weighted", "cosface": "source", "arcface": "source", "dbm-ce": "source"}
SCALED |= {"dbm-bs": "uniform", "dbm-drw": "weighted"}
SCALED |= {"dbm-bcl": "uniform", "dbm-gml": "uniform", "dbm-ncl": "uniform"}


def logits_hold(method: str) -> Holds:
    """Return what class prior the logits of a method hold: "source" (that of the training set), "uniform", "root" (its
    square root), "weighted" (that of the training set times the loss's class weights), "cosines" (margin losses: no
    logits that are calibrated without a scale), or "nothing" that is known.

    A trailing -lwr changes nothing. Errors: ConfigError for a name that is no method.
    """
    base = method.removesuffix(REPULSION_SUFFIX)
    kinds: dict[Holds, Sequence[str]] = {
        "source": SOURCE,
        "uniform": (*COMPENSATED, *BALANCED),
        "root": ROOT,
        "weighted": WEIGHTED,
        "cosines": tuple(SCALED),
    }
    find_method(method)
    for kind, names in kinds.items():
        if base in names:
            return kind
    return "nothing"


def holds(config: TrainConfig) -> Holds:
    """Return what the logits of a run hold: that of its method, or "nothing" where its samples were drawn otherwise."""
    own, chosen = run_options(config.method, {}), method_options(config.method, config.method_options)
    usual = method_options(config.method, {})
    drawn = effective(config).sampler == own.get("sampler", "instance")
    drawn = drawn and chosen.get("second_sampler") == usual.get("second_sampler")
    return logits_hold(config.method) if drawn else "nothing"


def held_prior(config: TrainConfig, class_counts: Tensor, module: Classifier, cosines: Cosines) -> Tensor | None:
    """Return the prior [C] that the run's logits hold, in any unit, or None where they hold none that is known.

    A logit adjustment at tau leaves p^(1 - tau). cosines: "scale" takes a margin loss's cosines times its scale for
    logits, as if its margins were the same for every class; "leave" does not.
    """
    kind = holds(config)
    if kind == "cosines" and cosines == "scale":
        return _of_kind(SCALED[config.method.removesuffix(REPULSION_SUFFIX)], class_counts, module, 1.0)
    tau = method_options(config.method, config.method_options).get("tau", 1.0)
    return _of_kind(kind, class_counts, module, float(tau))


def _of_kind(holds: str, class_counts: Tensor, module: Classifier, tau: float) -> Tensor | None:
    counts = class_counts.double()
    if holds == "uniform":
        return (counts / counts.sum()) ** (1 - tau)
    weight = getattr(module.head.loss, "weight", None)
    if holds == "weighted" and weight is not None:
        return counts * weight.double().cpu()
    powers = {"source": 1.0, "weighted": 1.0, "root": 0.5}
    return counts ** powers[holds] if holds in powers else None


def logit_scale(method: str, module: Classifier, cosines: Cosines) -> float:
    """Return what a method's prediction is multiplied by for logits: 1 but for heads of cosines."""
    return 1.0 if logits_hold(method) == "cosines" and cosines == "leave" else scale_of(trained_head(module))


@dataclasses.dataclass(frozen=True)
class ShiftResult:
    """Accuracies in percent of one run on each shifted test set, all its samples alike: of the logits as they are, and
    after compensation for that set's prior (None where the logits hold no known prior). `name`: the method's, or in a
    comparison that of a variant.
    """

    name: str
    config: TrainConfig
    holds: Holds
    plain: list[float]
    compensated: list[float] | None


@torch.inference_mode()
def predict_shifted(
    module: Classifier, inputs: Tensor, held: Tensor | None, priors: Sequence[Tensor], scale: float = 1.0
) -> tuple[Tensor, list[Tensor]]:
    """Return the predictions int64 [N] as trained, and for each target prior [C] those of softmax(scale z - log held +
    log prior) (Hong et al., 2021); none without `held`.
    """
    shifts: list[Tensor] = []
    if held is not None:  # compensated logits up to a constant, once and not for every row
        shifts = [pc_softmax(torch.zeros(len(held), dtype=torch.float64), held, prior).log() for prior in priors]
    plain: list[Tensor] = []
    moved: list[list[Tensor]] = [[] for _ in shifts]
    for part in inputs.split(1024):
        logits = scale * module(part).double()
        plain.append(logits.argmax(-1))
        for kept, shift in zip(moved, shifts):
            kept.append((logits + shift).argmax(-1))
    return torch.cat(plain), [torch.cat(kept) for kept in moved]


def evaluate_shifts(
    folder: str | Path, most: int | None = None, cosines: Cosines = "leave"
) -> tuple[ShiftResult, list[ShiftedTest]]:
    """Return the accuracies of the finished run in `folder` on the shifted test sets, and these sets.

    most: of `data.shift.shifted_tests`. Errors: ConfigError naming the folder or what cannot be used.
    """
    config, data, module = load_run(folder)
    try:
        tests = shifted_tests(data, most)
    except ValueError as error:
        raise ConfigError(f"{data.name}: {error}") from error
    held = held_prior(config, data.class_counts, module, cosines)
    inputs, target = data.test
    scale = logit_scale(config.method, module, cosines)
    plain, moved = predict_shifted(module, inputs, held, [test.counts for test in tests], scale)
    as_trained = [_accuracy(plain, target, test) for test in tests]
    compensated = [_accuracy(prediction, target, test) for prediction, test in zip(moved, tests)]
    compared = Path(folder).name == f"seed-{config.seed}"  # a comparison's folders are NAME/seed-SEED
    name = Path(folder).resolve().parent.name if compared else config.method
    return ShiftResult(name, config, holds(config), as_trained, compensated or None), tests


def _accuracy(prediction: Tensor, target: Tensor, test: ShiftedTest) -> float:
    return 100 * float((prediction[test.rows] == target[test.rows]).double().mean())


def same_data(results: Sequence[ShiftResult]) -> None:
    """Refuse runs on other data than the first one's: their columns would not be comparable."""
    for key in ("data", "imbalance", "data_options"):
        values: list[Any] = [getattr(result.config, key) for result in results]
        other = next((value for value in values if value != values[0]), None)
        if other is not None:
            raise ConfigError(f"runs must be on one data set: {key} is {values[0]!r} and {other!r}")
