"""How many samples each class keeps: imbalance profiles, and the choice of the samples."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.samplers import epoch_generator


def _check(n_max: int, num_classes: int, imbalance: float) -> float:
    checks.whole("n_max", n_max, 1, 2**53)  # beyond that, a count is no longer exact in floating point
    checks.whole("num_classes", num_classes)
    ratio = checks.number("imbalance", imbalance)
    if ratio < 1:
        raise ValueError(f"imbalance must be at least 1 (it is n_max / n_min), got {imbalance}")
    return ratio


def exponential_counts(n_max: int, num_classes: int, imbalance: float) -> list[int]:
    """Return n_c = int(n_max * (1 / imbalance)^(c / (C - 1))), class 0 the head (Cui et al., 2019; Cao et al., 2019).

    Errors: ValueError for n_max or num_classes below 1 or imbalance below 1, or if the last class would be left with no
    sample.
    """
    imbalance = _check(n_max, num_classes, imbalance)
    # in the published order of operations: one rounding elsewhere moves some counts by one
    counts = [int(n_max * (1 / imbalance) ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance must be at most n_max = {n_max}, so that every class keeps a sample, got {imbalance}"
        )
    return counts


def step_counts(n_max: int, num_classes: int, imbalance: float) -> list[int]:
    """Return n_max for the first half of the classes and int(n_max / imbalance) for the others (Buda et al., 2018).

    With an odd number of classes the head is the smaller half. Errors: as for `exponential_counts`.
    """
    imbalance = _check(n_max, num_classes, imbalance)
    tail = int(n_max / imbalance)
    if tail < 1:
        raise ValueError(
            f"imbalance must be at most n_max = {n_max}, so that every class keeps a sample, got {imbalance}"
        )
    head = num_classes // 2
    return [n_max] * head + [tail] * (num_classes - head)


def choose(target: Tensor, counts: Sequence[int], seed: int | None = None) -> Tensor:
    """Return the indices, ascending, of counts[c] samples of each class c, int64 [sum(counts)].

    target: int64 [N]. seed None takes the first of each class as they lie; otherwise they are drawn, as a function of
    the seed alone. Errors: ValueError if a class has fewer samples than its count.
    """
    order = (
        torch.arange(len(target)) if seed is None else torch.randperm(len(target), generator=epoch_generator(seed, 0))
    )
    wanted = torch.tensor([operator.index(count) for count in checks.by_key("counts", counts)], dtype=torch.int64)
    there = torch.bincount(target, minlength=len(wanted))
    for label in ((wanted < 0) | (wanted > there[: len(wanted)])).nonzero().flatten().tolist():
        raise ValueError(
            f"counts[{label}] must be in 0..{there[label]}, the samples of that class in target, got {wanted[label]}"
        )
    by_class = order[target[order].argsort(stable=True)]  # one sort: a search for each class would cost C passes
    place = torch.arange(len(target)) - (there.cumsum(0) - there)[target[by_class]]
    wanted = torch.cat([wanted, wanted.new_zeros(len(there) - len(wanted))])
    return by_class[place < wanted[target[by_class]]].sort().values
