"""The rules of the house, checked: sizes, words, what the core imports, public names, and documents that run."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.tables import readme

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [
    ROOT / "setup.py",
    *(p for d in ("lt_kernels", "benchmarks", "tools", "tests") for p in sorted((ROOT / d).rglob("*.py"))),
]
KERNELS = sorted([*(ROOT / "csrc").glob("*.*"), *(ROOT / "tests").rglob("*.cpp")])
WORDS = [path for path in ROOT.glob("*") if path.suffix in (".md", ".toml", ".yaml", ".txt") or path.name == "Makefile"]
WORDS += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*")), ROOT / ".ci" / "run"]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What is promised, by module.
PUBLIC = {
    "functional": "offset_cross_entropy linear_cross_entropy cosine_margin_cross_entropy logit_weight_repulsion "
    "lade_regularizer CosFace ArcFace SphereFace LDAM DBM MixedTarget",
    "losses": "CrossEntropyLoss BalancedSoftmaxLoss LogitAdjustmentLoss ARBLoss FocalLoss ClassBalancedLoss LDAMLoss "
    "DBMLoss CosFaceLoss ArcFaceLoss SphereFaceLoss LADELoss EstimatedOffsetLoss LabelAwareSmoothingLoss "
    "BalancedContrastiveLoss GMLLoss NCLLoss",
    "heads": "LinearHead CosineHead BalancedContrastiveHead GMLHead NCLHead",
    "regularizers": "LogitWeightRepulsion LADERegularizer UniformOffset CenterLoss",
    "schedules": "DeferredReweighting PolynomialDecay LinearWarmup",
    "priors": "log_prior class_balanced_weight ldam_margin dbm_margin label_aware_smoothing class_counts_of",
    "doctor": "main report",
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]


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


@pytest.mark.parametrize("path", [*PYTHON, *KERNELS], ids=short)
def test_no_file_is_too_long(path: Path) -> None:
    limit = 400 if path in KERNELS or "triton" in path.parts else 300
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def on_device(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def most_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """30 in Python; on a device 80 for a kernel and 12 for a function that kernels call."""
    return (80 if node.name.endswith("_kernel") else 12) if on_device(node) else 30


@pytest.mark.parametrize("path", PYTHON, ids=short)
def test_no_function_is_too_long(path: Path) -> None:
    assert {node.name: code_lines(node) for node in functions(path) if code_lines(node) > most_lines(node)} == {}


@pytest.mark.parametrize("path", [path for path in PYTHON if "tests" not in path.parts], ids=short)
def test_every_argument_is_annotated(path: Path) -> None:
    bare = [
        f"{node.name}({argument.arg})"
        for node in functions(path)
        if not on_device(node)  # pointers and numbers, whose dtypes vary
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if argument.annotation is None and argument.arg not in ("self", "cls")
    ]
    assert bare == []


@pytest.mark.parametrize("path", [*PYTHON, *KERNELS, *WORDS], ids=short)
def test_no_banned_words(path: Path) -> None:
    # put together from halves, so that this file passes its own test
    banned = ["TO" + "DO", "FIX" + "ME", ".cuda" + "(", "pytest.skip" + "()", "breakpoint" + "()"]
    text = path.read_text(encoding="utf-8")
    assert [word for word in banned if word in text] == []


@pytest.mark.parametrize(
    "path",
    [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "constraints.txt", ROOT / "constraints-hashed.txt"],
    ids=short,
)
def test_set_up_names_no_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"https?://|--(?:extra-)?index-url|--trusted-host", text) == []


CORE = """
import importlib, importlib.abc, os, pathlib, sys, warnings

os.environ.pop("LT_KERNELS_REQUIRE_EXTENSION", None)  # the extension is not to be found here
BLOCKED = {
    "triton", "lightning", "pytorch_lightning", "torchmetrics", "tensorboard", "rich", "yaml", "jsonargparse", "PIL",
    "sklearn", "scipy", "matplotlib", "torchvision", "timm", "kornia", "pybind11", "ninja", "pytest", "hypothesis",
}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name == "lt_kernels._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
root = pathlib.Path(sys.argv[1])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for path in sorted((root / "lt_kernels").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not {"train", "data", "triton", "__main__"} & set(parts):
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
    import torch
    from lt_kernels import doctor
    from lt_kernels.heads import CosineHead
    from lt_kernels.losses import LDAMLoss
    head = CosineHead(4, 3, LDAMLoss([5, 3, 1]))
    for _ in range(2):
        head(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
print(sum("lt_kernels" in str(warning.message) for warning in said))
assert "not loaded" in doctor.report() and "reference" in doctor.report()
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
"""


def test_core_needs_torch_and_numpy_alone_and_says_once_what_serves() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE, str(ROOT)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "1", done.stdout


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_public_names_exist_and_say_what_they_are(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(f"lt_kernels.{module}"), name)
    text = thing.__doc__ or ""
    assert len(text.split()) > 5, f"{module}.{name} has no docstring of its own"
    assert not text.startswith(f"{name}("), f"{module}.{name} has only the docstring that dataclass made"


def test_every_public_function_and_loss_is_in_a_document() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    missing = []
    for module in ("functional", "losses", "heads", "regularizers", "schedules"):
        names = getattr(importlib.import_module(f"lt_kernels.{module}"), "__all__", PUBLIC[module].split())
        missing += [f"{module}.{name}" for name in names if not re.search(rf"\b{name}\b", text)]
    assert missing == []


def blocks(path: Path) -> list[str]:
    """The Python code of a document, block by block."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path)], ids=short)
def test_code_in_documents_runs(path: Path) -> None:
    space: dict[str, object] = {"__name__": "document"}
    for number, block in enumerate(blocks(path), 1):
        exec(compile(block, f"{path.name}, block {number}", "exec"), space)


def test_a_loss_is_under_twenty_lines() -> None:
    (block,) = blocks(ROOT / "docs" / "adding_a_loss.md")
    (loss,) = [node for node in ast.parse(block).body if isinstance(node, ast.ClassDef)]
    assert (loss.end_lineno or 0) - loss.lineno + 1 < 20


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{short(path)} links to {target}"


def test_readme_tables_are_what_the_measured_files_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.rewritten(text, ROOT / "benchmarks" / "results") == text, "run make readme"


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
