"""What is loaded is data: no file of the package, and no tool beside it, loads anything that could run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("lt_kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
EXECUTING = {"eval", "exec", "compile", "os.system", "os.popen", "shelve.open", "joblib.load", "torch.jit.load"}
EXECUTING |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"}
EXECUTING |= {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.package.PackageImporter"}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def options(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: getattr(word.value, "value", None) for word in call.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_loaded_is_executed(path: Path) -> None:
    for call in calls(path):
        name, given = ast.unparse(call.func), options(call)
        assert name not in EXECUTING, f"line {call.lineno}"
        if name.endswith("torch.load") or name == "load_state_dict_from_url":
            assert given.get("weights_only") is True, f"line {call.lineno}"
        assert given.get("allow_pickle") is not True, f"line {call.lineno}"
        assert given.get("shell") is not True, f"line {call.lineno}"
