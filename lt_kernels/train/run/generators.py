"""The generators that a run draws from: Python's, numpy's and torch's, kept, put back, and one stream a process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, as tensors, numbers and lists (a weights-only load
    reads them).
    """
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the state that other people's code draws from)
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [torch.cuda.get_rng_state()]  # of the one GPU that a process uses
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])


def seed_rank(*numbers: int) -> None:
    """Start all generators anew, from a hash of some numbers."""
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])  # noqa: NPY002 (the state that other people's code draws from)
    torch.manual_seed(int(seeds[2]))
