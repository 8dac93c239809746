"""Which part of the package may import which, and that what documents name can be imported from there."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import lt_kernels
from tests.nursery import missing

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "docs").rglob("*.md"),
]

# The parts of the package in layers, the lowest first: each imports only from those before it.
LAYERS = [
    *("core", "reference", "triton", "priors", "margins", "ops", "distributed", "functional", "contrastive"),
    *("regularizers", "losses", "heads", "posthoc", "schedules", "metrics"),
    *("integrations", "system", "data", "doctor", "train", "arguments", "cli", "__main__"),
]
# Of the lowest, all that they may import beside themselves: no kernel knows the operators that call it.
LOWEST = {"core": set(), "reference": {"core"}, "triton": {"core", "reference"}}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "lt_kernels").rglob("*.py"))
}
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py"}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, within its functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = (f"{node.module}.{name.name}" for name in node.names)
            found.update(name if name in FILES else node.module for name in full)
    return found & set(FILES)


GRAPH = {name: imports(path) for name, path in FILES.items()}


def in_circles(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The nodes that lead back to themselves."""
    found = []
    for start in graph:
        seen: set[str] = set()
        left = [start]
        while left:
            left += (new := set(graph[left.pop()]) - seen)
            seen |= new
        found += [start] * (start in seen)
    return found


def part_of(module: str) -> str:
    """The folder of a module; a module that lies beside folders is a part of its own."""
    folder = module if module in PACKAGES else module.rpartition(".")[0]
    return module if any(other.startswith(f"{folder}.") for other in PACKAGES) else folder


def test_no_circle_of_imports() -> None:
    """No module leads back to itself, not even by an import within a function, and no part to itself by another."""
    assert in_circles(GRAPH) == []
    parts: dict[str, set[str]] = {}
    for name, found in GRAPH.items():
        parts.setdefault(part_of(name), set()).update(map(part_of, found))
    assert in_circles({name: found - {name} for name, found in parts.items()}) == []


def test_circles_are_found() -> None:
    assert in_circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == ["b", "c"]
    assert part_of("lt_kernels.heads.classifier") == "lt_kernels.heads"
    assert part_of("lt_kernels.ops.backends.door") == "lt_kernels.ops.backends"
    assert part_of("lt_kernels.ops.rows") == "lt_kernels.ops.rows"
    assert part_of("lt_kernels.functional") == "lt_kernels.functional"


def test_each_layer_imports_lower_ones_alone() -> None:
    def top(module: str) -> str:
        return module.split(".")[1]

    pairs = {(top(name), top(one)) for name in GRAPH for one in GRAPH[name] if "." in name and "." in one}
    assert {name for pair in pairs for name in pair} <= set(LAYERS)
    assert [(name, one) for name, one in pairs if LAYERS.index(one) > LAYERS.index(name)] == []
    assert [(name, one) for name, one in pairs if name in LOWEST and one not in {name, *LOWEST[name]}] == []


def thing(dotted: str) -> object:
    """What a dotted name stands for: a module, or what one has."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:place]))
        found = getattr(found, part)
    return found


def test_documents_name_what_is_there() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    names = sorted(set(re.findall(r"\blt_kernels(?:\.[A-Za-z_]\w*)+", text)))
    assert len(names) > 10
    for name in names:
        if not missing(f"import {name}"):
            thing(name)


def test_the_package_offers_what_documents_import_from_it() -> None:
    """What `from lt_kernels import ...` gives in documents, and what is there without a second import."""
    assert set(lt_kernels.__all__) == {
        *("__version__", "checks", "functional", "heads", "losses", "memory_budget", "metrics", "posthoc", "priors"),
        *("regularizers", "schedules"),
    }
    assert [name for name in lt_kernels.__all__ if not hasattr(lt_kernels, name)] == []
