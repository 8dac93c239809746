"""A call goes directly or by operators: which way is what docs/kernels/which.md says, for each public function."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lt_kernels import functional, memory_budget
from lt_kernels.core import private
from lt_kernels.ops import calling, columns, direct, groups, linear, margins, rows, use_kernels
from lt_kernels.ops.backends import library

ROOT = Path(__file__).resolve().parents[2]
DIRECT = {direct.RowsLoss, direct.FeaturesLoss, groups.GroupedLoss, columns.LadeLoss}
pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")


def functions_of(value: Tensor) -> set[str]:
    """The names of the autograd functions of ours behind a value."""
    found, nodes, seen = set(), [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = getattr(node, "_forward_cls", None)
        if kind is not None:
            found.add(kind.__name__)
        nodes += [parent for parent, _ in node.next_functions]
    return found


def leaves(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((6, 5), (6, 4), (5, 4))
    found = [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]
    return *found, torch.tensor([0, 1, 2, 3, 4, 0])


CALLS: dict[str, Callable[..., Tensor]] = {
    "offset_cross_entropy": lambda z, x, w, y, **more: functional.offset_cross_entropy(z, y, **more),
    "linear_cross_entropy": lambda z, x, w, y, **more: functional.linear_cross_entropy(x, w, y, **more),
    "cosine_margin_cross_entropy": lambda z, x, w, y, **more: functional.cosine_margin_cross_entropy(x, w, y, **more),
    "lade_regularizer": lambda z, x, w, y: functional.lade_regularizer(z, y, torch.ones(5)),
    "logit_weight_repulsion": lambda z, x, w, y, **more: functional.logit_weight_repulsion(w, **more),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"weight": torch.ones(5)},
    {"offset": torch.ones(5)},
    {"offset": torch.ones(6, 1, 5)},
    {"label_smoothing": 0.1},
    {"focal_gamma": 1.0},
    {"reduction": "none"},
)


def settings(name: str) -> Iterator[tuple[dict[str, Any], torch.dtype, int]]:
    """Options, dtypes and budgets that the ways differ by."""
    takes = inspect.signature(getattr(functional, name)).parameters
    for options in OPTIONS:
        if set(options) <= set(takes):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                for budget in (2**28, 200):
                    yield options, dtype, budget


@pytest.mark.filterwarnings("ignore:bytes=200")
@pytest.mark.parametrize("name", CALLS)
def test_each_call_takes_one_of_two_ways(name: str) -> None:
    """Eagerly one function serves the whole loss, or the operators do; where somebody looks on the operators do."""
    names = {kind.__name__ for kind in DIRECT}
    for options, dtype, budget in settings(name):
        with memory_budget(budget):
            found = functions_of(CALLS[name](*leaves(dtype), **options))
            with use_kernels("compiled"):
                watched = functions_of(CALLS[name](*leaves(dtype), **options))
        case = f"{name}, {list(options)}, {dtype}, {budget} bytes"
        assert watched, case
        assert not watched & names, case
        assert found == watched or (len(found) == 1 and found <= names), (case, found)


def test_the_plainest_call_of_each_goes_directly() -> None:
    names = {kind.__name__ for kind in DIRECT}
    plain = {name: functions_of(call(*leaves(torch.float32))) for name, call in CALLS.items()}
    assert [name for name, found in plain.items() if not found <= names] == ["logit_weight_repulsion"]


def test_the_table_names_every_function_and_operator() -> None:
    text = (ROOT / "docs" / "kernels" / "which.md").read_text(encoding="utf-8")
    table = text[text.index("| call | direct |") :].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert {kind.__name__ for kind in DIRECT} <= named
    known = {one for module in (direct, groups, columns, rows, linear, margins) for one in vars(module)}
    missing = [one for one in named if one not in known and not private.has_kernel(f"lt_kernels::{one}", "CPU")]
    assert missing == []


def test_private_parts_of_torch_are_in_one_file_and_are_there() -> None:
    """Whatever of torch begins with an underscore is read in core/private.py, and this version of torch has it."""
    allowed = ROOT / "lt_kernels" / "core" / "private.py"
    for path in sorted((ROOT / "lt_kernels").rglob("*.py")):
        if path != allowed:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            chains = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
            private_part = re.compile(r"(torch\.(\w+\.)*|DistributedDataParallel\.)_[a-z]")
            assert [chain for chain in chains if private_part.match(chain)] == [], path
    assert not private.transformed()
    assert not private.dispatch_modes()
    assert not private.batched(torch.ones(1))
    assert isinstance(private.onednn_enabled(), bool)
    assert isinstance(private.int8_instructions(), bool)
    assert private.has_kernel("aten::mm", "CPU")
    assert private.averaged_over(torch.ones(1)) is None
    kept = []
    leaf = torch.ones(1, requires_grad=True)
    leaf.register_hook(lambda _: kept.append(private.graph_kept()))
    value = leaf.sum()
    value.backward(retain_graph=True)
    value.backward()
    assert kept == [True, False]
    torch.func.vmap(lambda x: kept.append(private.batched(x)) or x)(torch.ones(2))
    torch.func.grad(lambda x: kept.append(private.transformed()) or x)(torch.ones(()))
    assert kept[2:] == [True, True]
    assert not calling.watched()
