"""The tensors of a case: leaves that get a gradient, and constants. The same seed gives the same problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import LOGITS, SPARSE, Case
from benchmarks.registry import OF_FEATURES, of_cosine

ALIKE = 11  # classes of a group, where each is to have ten active pairs


@dataclass(frozen=True)
class Problem:
    """The arguments of one operator: `leaves` require a gradient, `constants` do not."""

    case: Case
    leaves: dict[str, Tensor]
    constants: dict[str, Tensor]

    @property
    def device(self) -> str:
        """Where the tensors are."""
        return str(next(iter(self.leaves.values())).device)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another dtype, as new leaves; indices stay what they are."""
        leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in self.leaves.items()}
        constants = {name: x.to(dtype) if x.is_floating_point() else x for name, x in self.constants.items()}
        return Problem(self.case, leaves, constants)

    def copy(self) -> Problem:
        """The same numbers in leaves of their own, for those who write into their input."""
        return Problem(
            self.case, {n: x.detach().clone().requires_grad_() for n, x in self.leaves.items()}, self.constants
        )


def class_counts(classes: int) -> Tensor:
    """Counts [C] falling exponentially from 1,000 to 10: imbalance 100."""
    return (1000 * 100 ** -torch.linspace(0, 1, classes, dtype=torch.float64)).round()


def problem(case: Case, device: str, seed: int = 0) -> Problem:
    """Random leaves in the case's dtype, and targets drawn from a long tail."""
    random, counts = torch.Generator(device).manual_seed(seed), class_counts(case.classes).to(device)
    with torch.device(device):  # a device draws billions of numbers sooner than it is sent them
        leaves = {name: leaf.to(case.dtype).requires_grad_() for name, leaf in _leaves(case, random).items()}
        constants = {"class_counts": counts.float()}
        if case.loss in OF_FEATURES:
            constants["centers"] = torch.randn(case.classes, case.features, generator=random)
        if case.rows:
            constants["target"] = torch.multinomial(counts, case.rows, replacement=True, generator=random)
            constants["offset"] = (counts / counts.sum()).log().float()
    return Problem(case, leaves, constants)


def _leaves(case: Case, random: torch.Generator) -> dict[str, Tensor]:
    rows, classes, features = case.rows, case.classes, case.features
    if case.operator == "logit_weight_repulsion":
        groups = classes // ALIKE if case.name.endswith(SPARSE) else min(100, classes // 4)
        return {"linear_weight": _clustered(classes, features, max(1, groups), random)}
    if case.loss and of_cosine(case.loss):
        return {"cosine": 1.6 * torch.rand(rows, classes, generator=random) - 0.8}
    if case.loss not in OF_FEATURES and case.operator in (*LOGITS, "losses"):
        return {"logits": 3 * torch.randn(rows, classes, generator=random)}
    return {
        "input": torch.randn(rows, features, generator=random),
        "linear_weight": torch.randn(classes, features, generator=random) / features**0.5,
    }


def _clustered(classes: int, features: int, groups: int, random: torch.Generator) -> Tensor:
    """Weights [C, d] of which those of a group have cosines near one half: similar classes, as trained ones.

    Independent normal rows would leave no pair above the threshold, and so nothing to compute. With 100 groups one pair
    in a hundred is active; with groups of ALIKE each class has ten active pairs, about as many as after training. Class
    c belongs to group c mod `groups`, so that every block of the C x C matrix has such pairs.
    """
    centers = F.normalize(torch.randn(groups, features, generator=random))[torch.arange(classes) % groups]
    return centers + F.normalize(torch.randn(classes, features, generator=random))
