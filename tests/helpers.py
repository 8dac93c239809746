"""Random problems, and the comparison of a function and all its gradients with another one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tolerances import assert_close
from torch import Tensor

Function = Callable[..., Tensor]


def generator(seed: int) -> torch.Generator:
    """A random generator of its own, so that no test depends on what ran before it."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers of the given spread, rounded to `dtype`."""
    return (spread * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)).to(dtype)


def classes_of(rows: int, classes: int, seed: int) -> Tensor:
    """A class index for each row."""
    return torch.randint(classes, (rows,), generator=generator(seed))


def counts_of(classes: int, seed: int, largest: int = 500) -> Tensor:
    """Class counts from 1 to `largest`, in no order (the rarest class is not the last one), as float64."""
    return torch.randint(1, largest + 1, (classes,), generator=generator(seed)).double()


def gradients(function: Function, leaves: dict[str, Tensor], cotangent: Tensor | None = None) -> dict[str, Tensor]:
    """The value of function(**leaves) under "value", and each floating leaf's gradient (or zero) under its name."""
    leaves = {key: leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for key, leaf in leaves.items()}
    value = function(**leaves)
    result = {"value": value.detach()}
    wanted = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
    if cotangent is None:
        cotangent = normal(*value.shape, seed=99).to(value.dtype) if value.dim() else torch.ones_like(value)
    found = torch.autograd.grad(value, list(wanted.values()), cotangent, allow_unused=True)
    for (key, leaf), gradient in zip(wanted.items(), found, strict=True):
        assert gradient is None or (gradient.dtype == leaf.dtype and gradient.shape == leaf.shape), key
        result[key] = torch.zeros_like(leaf) if gradient is None else gradient
    return result


def assert_same(ours: Function, exact: Function, leaves: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
    """Fail unless value and all gradients agree; `exact` is computed in float64 from the same (rounded) leaves."""
    wide = {key: leaf.double() if leaf.is_floating_point() else leaf for key, leaf in leaves.items()}
    left, right = gradients(ours, leaves), gradients(exact, wide)
    for key, value in right.items():
        assert_close(left[key], value, dtype, key)
