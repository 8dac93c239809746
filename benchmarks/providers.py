"""Who computes a case: ours, its competitors, and the bare work that nobody can do without."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import eager, peers, registry
from benchmarks.problems import Problem
from lt_kernels import functional, losses
from lt_kernels.ops import products

Function = Callable[..., Tensor]
# Limits are no competitors: they return no loss and are not checked. "products" are torch's own, "products-onednn" the
# same by the library that ours takes where it is faster.
LIMITS = ("products", "products-onednn", "clone")
NAMES = ("ours", "eager", "compile", "torch", "torch-chunked", *peers.NAMES, *LIMITS)


@dataclass(frozen=True)
class Provider:
    """A forward that returns a loss, and a backward that returns the gradients of the problem's leaves."""

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], Sequence[Tensor]]

    @property
    def is_limit(self) -> bool:
        """Whether it does only the work that every method has to do."""
        return self.name in LIMITS


def providers(problem: Problem, names: Sequence[str] = NAMES) -> list[Provider]:
    """Every provider among `names` that serves this problem."""
    wanted = ["ours"] if problem.case.ours_alone else names
    functions = {name: function_of(name, problem) for name in wanted if name not in LIMITS}
    limits = {"products": _products(problem), "products-onednn": _by_onednn(problem), "clone": _clone(problem)}
    found = [
        autograd(name, function, problem.copy() if peers.spoils(name, problem.case.operator) else problem)
        for name, function in functions.items()
        if function is not None
    ]
    return found + [limit for name, limit in limits.items() if limit is not None and name in wanted]


def function_of(name: str, problem: Problem) -> Function | None:
    """The function that a provider computes the problem with, or None where it does not serve it."""
    if name == "ours":
        return _ours(problem)
    if name == "eager":
        return eager_function(problem)
    if name == "compile":
        return None if problem.case.operator == "losses" else torch.compile(eager_function(problem), dynamic=False)
    if name in peers.NAMES:
        return peers.function(name, problem.case.operator, problem.device.partition(":")[0])
    return _torch(name, problem)


def eager_function(problem: Problem) -> Function:
    """The textbook form of the problem's operator."""
    case = problem.case
    if case.loss in registry.OF_FEATURES:
        return registry.NAMED[case.loss].eager(problem.constants["centers"])
    return registry.NAMED[case.loss].eager if case.loss else getattr(eager, case.operator)


def _ours(problem: Problem) -> Function:
    counts, arcface = problem.constants["class_counts"], functional.ArcFace(0.5)
    if problem.case.loss:
        return _named_loss(problem)
    return {
        "cross_entropy": lambda logits, target: functional.offset_cross_entropy(logits, target),
        "offset_cross_entropy": functional.offset_cross_entropy,
        "linear_cross_entropy": lambda input, linear_weight, target: functional.linear_cross_entropy(
            input, linear_weight, target
        ),
        "cosine_margin_cross_entropy": lambda input, linear_weight, target: functional.cosine_margin_cross_entropy(
            input, linear_weight, target, margin=arcface, scale=30.0
        ),
        "logit_weight_repulsion": lambda linear_weight: functional.logit_weight_repulsion(linear_weight),
        "lade_regularizer": lambda logits, target: functional.lade_regularizer(logits, target, counts),
    }[problem.case.operator]


def _named_loss(problem: Problem) -> Function:
    """The module of that name, called with the leaf (logits or cosines) and the target."""
    counts = problem.constants["class_counts"]
    if problem.case.loss in registry.OF_FEATURES:
        return _estimated_offset(problem)
    module = registry.made(problem.case.loss, counts).to(counts.device)
    if "cosine" in problem.leaves:
        return lambda cosine, target: module(cosine, target)
    return lambda logits, target: module(logits, target)


def _estimated_offset(problem: Problem) -> Function:
    """The one loss that has a state, class centres, and that takes features: as a head calls it."""
    centers = problem.constants["centers"]
    module = losses.EstimatedOffsetLoss(*centers.shape).to(centers.device)
    module.center_loss.centers = centers
    return lambda input, linear_weight, target: module.from_features(input, linear_weight, target)


def _torch(name: str, problem: Problem) -> Function | None:
    """torch.nn.functional.linear_cross_entropy (torch >= 2.13), plain or in chunks."""
    if problem.case.operator != "linear_cross_entropy" or not hasattr(F, "linear_cross_entropy"):
        return None
    options = torch.nn.LinearCrossEntropyOptions() if name == "torch-chunked" else None
    return lambda input, linear_weight, target: F.linear_cross_entropy(input, linear_weight, target, options=options)


def autograd(name: str, function: Function, problem: Problem) -> Provider:
    """A function of the problem's tensors (those that its signature names), differentiated by autograd."""
    known = problem.leaves | problem.constants
    taken = inspect.signature(function).parameters
    arguments = {key: value for key, value in known.items() if key in taken}
    leaves = list(problem.leaves.values())
    return Provider(name, lambda: function(**arguments), lambda loss: torch.autograd.grad(loss, leaves))


def _products(problem: Problem) -> Provider | None:
    """The matrix products of forward and backward alone: logits, gradient of the input, gradient of the weight."""
    weight = problem.leaves.get("linear_weight")
    if weight is None or problem.case.operator == "losses":
        return None
    weight = weight.detach()
    if "input" not in problem.leaves:
        return Provider("products", lambda: weight @ weight.T, lambda similarity: [similarity @ weight])
    input = problem.leaves["input"].detach()
    return Provider("products", lambda: input @ weight.T, lambda logits: [logits @ weight, logits.T @ input])


def _by_onednn(problem: Problem) -> Provider | None:
    """The same by the faster library, where that is not torch's own."""
    weight, input = problem.leaves.get("linear_weight"), problem.leaves.get("input")
    if weight is None or input is None or problem.case.operator == "losses" or not products.large(input, weight):
        return None
    x, w, product = input.detach(), weight.detach(), products.product
    return Provider(
        "products-onednn", lambda: products.linear(x, w), lambda logits: [product(logits, w), product(logits.T, x)]
    )


def _clone(problem: Problem) -> Provider | None:
    """One read and one write of the logits."""
    logits = problem.leaves.get("logits")
    if logits is None or problem.case.operator == "losses":
        return None
    return Provider("clone", lambda: logits.detach().clone(), lambda _: [])
