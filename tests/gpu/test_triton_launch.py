"""Launches that repeat find the compiled kernel of the first one, and only where it is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from lt_kernels.triton import launch as launches
from lt_kernels.triton.launch import Prepared, launch, recorded


class Kernel:
    """A kernel that notes how it is called: bound and compiled anew, or in its compiled form."""

    arg_names = ("x", "size", "scale", "BLOCK")

    def __init__(self) -> None:
        self.bound: list[dict[str, Any]] = []
        self.ran: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def bind(**arguments: Any) -> Compiled:
            self.bound.append({"grid": grid, **arguments})
            return Compiled(self)

        return bind


class Compiled:
    """The compiled form."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *values: self.kernel.ran.append((grid, values))


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of one device, which start with an empty table."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launches, "_made", {})


def arguments(**other: Any) -> dict[str, Any]:
    return {"BLOCK": 32, "x": torch.zeros(8), "size": 8, "scale": 1.5} | other


def test_a_launch_that_repeats_is_not_bound_again() -> None:
    kernel, first, second = Kernel(), arguments(), arguments()
    launch(kernel, (3,), first, warps=8, stages=3)
    launch(kernel, (5, 2), second, warps=8, stages=3)
    assert kernel.bound == [{"grid": (3,), **first, "num_warps": 8, "num_stages": 3}]
    ((grid, values),) = kernel.ran
    assert grid == (5, 2, 1)
    assert values[0] is second["x"]
    assert values[1:] == (8, 1.5, 32)


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(8, dtype=torch.float64)},
        {"x": torch.zeros(9)[1:]},  # an address that 16 does not divide
        {"x": None},
        {"size": 9},
        {"scale": 2.5},
        {"BLOCK": 64},
    ],
    ids=("dtype", "alignment", "absent", "size", "number", "constant"),
)
def test_another_kind_of_argument_is_another_kernel(other: dict[str, Any]) -> None:
    kernel = Kernel()
    for _ in range(2):
        launch(kernel, (1,), arguments())
        launch(kernel, (1,), arguments(**other))
    assert len(kernel.bound) == len(kernel.ran) == 2


@pytest.mark.parametrize("option", [{"warps": 8}, {"stages": 4}], ids=str)
def test_options_and_devices_have_kernels_of_their_own(option: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    launch(kernel, (1,), arguments())
    launch(kernel, (1,), arguments(), **option)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launch(kernel, (1,), arguments())
    assert len(kernel.bound) == 3


def test_the_table_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MOST", 4)
    kernel = Kernel()
    for size in range(2, 12):
        launch(kernel, (1,), arguments(size=size))
        assert len(launches._made) <= 4
    launch(kernel, (1,), arguments(size=11))
    assert len(kernel.ran) == 1


def test_an_empty_grid_starts_nothing_and_a_recorded_launch_is_written_down() -> None:
    kernel = Kernel()
    launch(kernel, (0, 3), arguments())
    with recorded() as found:
        launch(kernel, (2,), arguments(x=torch.empty(4, device="meta")))
    assert (kernel.bound, kernel.ran) == ([], [])
    assert [(one.kernel, one.grid, one.warps, one.stages) for one in found] == [(kernel, (2,), 4, 2)]


def test_of_a_prepared_launch_only_the_tensors_count() -> None:
    kernel, first, second = Kernel(), torch.zeros(8), torch.zeros(8)
    prepared = Prepared(kernel, (3,), {"BLOCK": 32, "size": 8, "scale": 1.5}, warps=8)
    for one in (first, second):
        prepared(x=one)
    assert kernel.bound == [{"grid": (3,), **arguments(x=first), "num_warps": 8, "num_stages": 2}]
    ((grid, values),) = kernel.ran
    assert grid == (3, 1, 1)
    assert values[0] is second
    assert values[1:] == (8, 1.5, 32)
    for other in (torch.zeros(8, dtype=torch.float64), torch.zeros(9)[1:], None):
        prepared(x=other)
    assert len(kernel.bound) == 4
    with recorded() as found:
        prepared(x=torch.empty(4, device="meta"))
    assert [(one.grid, one.warps, one.arguments["size"]) for one in found] == [((3,), 8, 8)]
