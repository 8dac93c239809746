"""What is loaded is data: no file of the package, and no tool beside it, loads anything that could run."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("lt_kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
EXECUTING = {"eval", "exec", "compile", "os.system", "os.popen", "shelve.open", "joblib.load", "torch.jit.load"}
EXECUTING |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"}
EXECUTING |= {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.package.PackageImporter"}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def options(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: getattr(word.value, "value", None) for word in call.keywords}


def wrong(call: ast.Call) -> bool:
    """Whether a call may run what it is given."""
    name, given = ast.unparse(call.func), options(call)
    loads = name.endswith("torch.load") or name == "load_state_dict_from_url"
    unsafe = given.get("allow_pickle") is True or given.get("shell") is True
    return name in EXECUTING or unsafe or (loads and given.get("weights_only") is not True)


def test_nothing_that_is_loaded_is_executed() -> None:
    found = [(path, call) for path in FILES for call in calls(path)]
    assert [f"{path.relative_to(ROOT)}, line {call.lineno}" for path, call in found if wrong(call)] == []


def test_what_could_run_is_found() -> None:
    lines = ("eval(text)", "torch.load(path)", "np.load(path, allow_pickle=True)", "run(words, shell=True)")
    right = ("torch.load(path, weights_only=True)", "np.load(path)", "run(words)")
    assert [wrong(ast.parse(line, mode="eval").body) for line in (*lines, *right)] == [True] * 4 + [False] * 3
