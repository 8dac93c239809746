"""The rules of the house, a test each: sizes, folders, words and annotations."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [
    ROOT / "setup.py",
    *(p for d in ("lt_kernels", "benchmarks", "tools", "tests") for p in sorted((ROOT / d).rglob("*.py"))),
]
KERNELS = sorted([*(ROOT / "csrc").glob("*.*"), *(ROOT / "tests").rglob("*.cpp")])
WORDS = [path for path in ROOT.glob("*") if path.suffix in (".md", ".toml", ".yaml", ".txt") or path.name == "Makefile"]
WORDS += [
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "lt_kernels" / "recipes").glob("*")),
    ROOT / ".ci" / "run",
]
FOLDERS = [ROOT / name for name in ("lt_kernels", "benchmarks", "tests", "tools")]


def short(path: Path) -> str:
    """The path as a test's name shows it."""
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, inner ones too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring; the formatter gives each argument of a signature a line."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 0


def test_no_file_is_too_long() -> None:
    limits = {path: 400 if path in KERNELS or "triton" in path.parts else 300 for path in [*PYTHON, *KERNELS]}
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in limits}
    assert {short(path): lines[path] for path, limit in limits.items() if lines[path] > limit} == {}


def test_no_folder_is_crowded() -> None:
    """At most 20 Python files lie flat in a folder."""
    folders = sorted({path.parent for top in FOLDERS for path in top.rglob("*.py")})
    count = {short(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: number for name, number in count.items() if number > 20} == {}


def on_device(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def most_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """30 in Python; on a device 80 for a kernel and 12 for a function that kernels call."""
    return (80 if node.name.endswith("_kernel") else 12) if on_device(node) else 30


def test_no_function_is_too_long() -> None:
    found = [(path, node) for path in PYTHON for node in functions(path) if code_lines(node) > most_lines(node)]
    assert {f"{short(path)}: {node.name}": code_lines(node) for path, node in found} == {}


def test_every_argument_is_annotated() -> None:
    bare = [
        f"{short(path)}: {node.name}({argument.arg})"
        for path in PYTHON
        if "tests" not in path.parts
        for node in functions(path)
        if not on_device(node)  # pointers and numbers, whose dtypes vary
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if argument.annotation is None and argument.arg not in ("self", "cls")
    ]
    assert bare == []


def test_no_banned_words() -> None:
    # put together from halves, so that this file passes its own test
    banned = ["TO" + "DO", "FIX" + "ME", ".cuda" + "(", "pytest.skip" + "()", "breakpoint" + "()"]
    texts = {path: path.read_text(encoding="utf-8") for path in [*PYTHON, *KERNELS, *WORDS]}
    assert [f"{short(path)}: {word}" for path, text in texts.items() for word in banned if word in text] == []


def test_set_up_names_no_host() -> None:
    names = ("Makefile", ".ci/run", "constraints.txt", "constraints-hashed.txt")
    host = r"https?://|--(?:extra-)?index-url|--trusted-host"
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    assert {name: re.findall(host, text) for name, text in texts.items() if re.search(host, text)} == {}


def test_changelog_has_an_unreleased_section() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]\n\n### (Added|Changed|Fixed|Removed)\n\n- ", text, flags=re.MULTILINE)


def test_the_version_is_one() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    import lt_kernels

    assert getattr(lt_kernels, "__version__", version) == version


def test_code_lines_leave_signature_and_docstring_out() -> None:
    source = textwrap.dedent('''
        def f(
            x,
        ):
            """One.

            Two.
            """
            return x
    ''')
    (node,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert code_lines(node) == 1
