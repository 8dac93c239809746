"""torch's own check (schema, fake kernel, tracing) of each operator, with arguments as the functions pass them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenes import all_scenes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("kernels")

SCENES = all_scenes()


class Recorder(TorchDispatchMode):
    """Keeps each call of an operator of this package, with copies of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lt_kernels":
            copied = torch.utils._pytree.tree_map(
                lambda value: value.detach().clone() if isinstance(value, Tensor) else value, (args, kwargs or {})
            )
            self.calls.append((func, *copied))
        return func(*args, **(kwargs or {}))


def recorded(name: str) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in SCENES[name].leaves)
    with Recorder() as recorder:
        SCENES[name].function(*leaves).sum().backward()
    return recorder.calls


def pattern(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Which arguments are tensors, of what dtype and how many axes, and which are something else."""
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    return str([(leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


CHECKED: set[tuple[str, ...]] = set()  # a call of the same pattern is checked once: it takes a tenth of a second
OF_KERNELS = ("test_schema", "test_autograd_registration", "test_faketensor")  # what the real kernels give back
OF_OPERATORS = ("test_aot_dispatch_dynamic",)  # the tracing, which is that of the operator, whatever kernels run


@pytest.mark.parametrize("name", SCENES)
def test_operators(name: str, kernels: str) -> None:
    calls = recorded(name)
    assert calls, "no operator of this package was called"
    for operator, args, kwargs in calls:
        call = (str(operator), pattern(args, kwargs))
        for key, checks in (((kernels, *call), OF_KERNELS), (call, OF_OPERATORS)):
            if key not in CHECKED:
                torch.library.opcheck(operator, args, kwargs, test_utils=checks)
                CHECKED.add(key)


def test_every_room_is_reached() -> None:
    """Rows, margins, columns, gram and linear are all used by the scenes."""
    names = {str(operator) for name in SCENES for operator, _, _ in recorded(name)}
    assert len(names) >= 8, names
