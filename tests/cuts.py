"""A run that ends at a step, and equal states of runs, for the tests of resuming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def cut(step: int, run: Callable[[], Any]) -> None:
    """Do `run` until its training reaches the step, as if something failed there."""
    from lt_kernels.train.run.training import EpochSettings

    start = EpochSettings.on_train_batch_start

    def stop(self: Any, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            raise RuntimeError("cut short")
        start(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EpochSettings, "on_train_batch_start", stop)
        with pytest.raises(RuntimeError, match="cut short"):
            run()


def same(first: Any, second: Any) -> bool:
    """Whether two states, of tensors in dictionaries and lists, have the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
