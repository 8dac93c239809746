"""The picture in CONTRIBUTING of how a call travels: the files and functions that lead to a kernel are those drawn."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from lt_kernels.losses import BalancedSoftmaxLoss
from lt_kernels.ops import use_kernels
from lt_kernels.ops.backends import library

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lt_kernels"
# Which way, which kernel: named in the picture or below it.
CHOOSE = {"ops/calling.py", "ops/backends/library.py", "ops/backends/gpu.py"}
Stack = list[tuple[str, str]]  # file and function, the outermost first
compiled = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")


def picture() -> list[str]:
    """The lines of the picture."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^```\n(direct .*?)^```", text, flags=re.DOTALL | re.MULTILINE)[0].splitlines()


def drawn(way: str) -> Stack:
    """The files and functions of one way, in their order."""
    lines = picture()
    middle = lines[0].index("operators")
    column = [line[:middle] if way == "direct" else line[middle:] for line in lines]
    return [found for line in column for found in re.findall(r"^(\w+/\w+\.py) +(\S+)$", line.rstrip())]


def problem() -> tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]:
    """A loss, logits that need a gradient, and a target."""
    logits = torch.tensor([[0.5, 1.0, -1.0], [0.0, 2.0, 1.0]], requires_grad=True)
    return BalancedSoftmaxLoss([5, 3, 1]), logits, torch.tensor([0, 2])


def stack(frame: FrameType | None) -> Stack:
    """The functions of the package that a frame is in."""
    found: Stack = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.insert(0, (path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name))
        frame = frame.f_back
    return found


def traced(arrived: Callable[[FrameType], str]) -> dict[str, Stack]:
    """What a call is in where `arrived` first gives the name of an operator or a kernel."""
    found: dict[str, Stack] = {}
    loss, logits, target = problem()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name = arrived(frame) if event == "call" else ""
        if name and name not in found:
            found[name] = stack(frame)

    sys.setprofile(profile)
    try:
        loss(logits, target)
    finally:
        sys.setprofile(None)
    return found


def operator(frame: FrameType) -> str:
    """The operator of the package that a frame calls."""
    if frame.f_code is not torch._ops.OpOverload.__call__.__code__:
        return ""
    space, _, name = frame.f_locals["self"].name().partition("::")
    return name if space == "lt_kernels" else ""


def triton(frame: FrameType) -> str:
    """The kernel of lt_kernels/triton that a frame starts."""
    path = Path(frame.f_code.co_filename)
    return f"{path.name} {frame.f_code.co_name}" if path.parent == PACKAGE / "triton" else ""


def holds(way: str, found: Stack) -> None:
    """The call went through the files that are drawn, in that order, and in each through the function that is named."""
    files = list(dict.fromkeys(file for file, _ in found if file not in CHOOSE))
    wanted = drawn(way)
    assert files == [file for file, _ in wanted]
    assert len(files) <= 4
    assert [(file, name) for file, name in wanted if (file, name.rpartition(".")[2]) not in found] == []


@compiled
def test_eager_on_a_cpu() -> None:
    (found,) = traced(operator).items()
    assert found[0] == "rows_loss_gradient"
    holds("direct", found[1])


@compiled
def test_by_operators() -> None:
    with use_kernels("compiled"):
        (found,) = traced(operator).items()
    assert found[0] == "rows_loss"
    holds("operators", found[1])


@pytest.mark.skipif(not library.interpreted(), reason="needs triton's interpreter")
def test_on_a_gpu() -> None:
    with use_kernels("triton"):
        found = traced(triton)
    holds("direct", [place for place in found["rows.py rows_loss_gradient"] if not place[0].startswith("triton/")])


@compiled
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # by torch's compiler
def test_compiled_for_a_cpu() -> None:
    """Dynamo notes for each operator of its graph where it was called."""
    found: dict[str, Stack] = {}

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs = [one.graph for one in module.modules() if isinstance(one, torch.fx.GraphModule)]
        for node in (node for graph in graphs for node in graph.nodes if "lt_kernels" in str(node.target)):
            places = re.findall(r'File ".*/lt_kernels/(\S+)", line \d+, in (\w+)', node.meta["stack_trace"])
            found[str(node.target)] = places
        return module.forward

    loss, logits, target = problem()
    torch.compile(loss, backend=look, fullgraph=True)(logits, target)
    (only,) = found.items()
    assert only[0] == "lt_kernels.rows_loss_gradient.default"
    holds("operators", only[1])


def test_the_picture_ends_in_kernels() -> None:
    *_, operators, _, kernels = picture()
    source = (ROOT / "csrc" / "rows.cpp").read_text(encoding="utf-8")
    for name in re.findall(r"rows_\w+", operators):
        assert f'impl("{name}"' in source
    folders = {"csrc": ROOT / "csrc", "triton": PACKAGE / "triton", "reference": PACKAGE / "reference"}
    assert all((folders[folder] / file).exists() for folder, file in re.findall(r"(\w+)/(\w+\.\w+)", kernels))
