"""Build the site of the documents, with warnings as errors: python -m tools.site [--out FOLDER].

The pages are the documents as they lie in the repository, so that the links between them hold here too, beside a
reference that is made from the public names and their docstrings. A document that is in no section below has its place
in the last one, and a guide that is added is among the guides.
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.pins import ROOT

SECTIONS: dict[str, tuple[str, ...]] = {
    "Start": ("docs/quick_start.md", "docs/choose_a_method.md", "docs/coming_from.md"),
    "Guides": ("docs/guides/*.md",),
    "Losses": (
        *("docs/functional.md", "docs/class_counts.md", "docs/metrics.md", "docs/label_shift.md", "docs/math.md"),
        "docs/adding_a_loss.md",
    ),
    "Harness": (
        *("docs/runs.md", "docs/recipes.md", "docs/methods.md", "docs/results.md"),
        *("docs/results_images.md", "docs/analysis.md", "docs/segmentation.md"),
    ),
    "Distributed": ("docs/distributed.md", "docs/cluster.md"),
    "Kernels": ("docs/kernels/README.md", "docs/kernels/*.md"),
    "Reference": ("reference/*.md",),
    "Project": ("CONTRIBUTING.md", "docs/*.md", "CHANGELOG.md", "SECURITY.md"),
}
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
# The modules of the reference, in its order; beside them each integration.
MODULES = (
    *("functional", "losses", "heads", "regularizers", "schedules", "priors", "posthoc", "metrics", "contrastive"),
    *("distributed", "ops", "doctor"),
)
STYLE = ROOT / "docs" / "site.css"
# What one calls of a loss or a head; their other methods are for those who add a loss.
CALLED = {"losses": ("forward", "set_weight", "set_annealing"), "heads": ("forward", "reset_parameters")}
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the site; return the exit status."""
    parser = argparse.ArgumentParser("python -m tools.site", description="Build the site of the documents.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="the folder of the site")
    out = parser.parse_args(argv).out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        gather(pages)
        build(pages, out)
    print(f"{out}/index.html")
    return 0


def gather(pages: Path) -> None:
    """Put the documents, the files that they link to, and the reference into a folder."""
    documents = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
    linked = {path.parent / found for path in documents for found, _ in LINK.findall(path.read_text(encoding="utf-8"))}
    for path in {STYLE, *documents, *(one.resolve() for one in linked if one.is_file())}:
        place = pages / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            place.write_text(nested(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(path, place)
    (pages / "reference").mkdir()
    for name, path in modules().items():
        (pages / "reference" / f"{name}.md").write_text(reference(name, path), encoding="utf-8")


def nested(text: str) -> str:
    """Markdown with the lists that Python-Markdown wants: indented by four columns, and not as far as their text; and
    with an empty line before an entry that comes after an entry of several paragraphs.
    """
    lines: list[str] = []
    widths: list[int] = []
    fence = parts = False  # inside code; after an empty line within an entry
    for line in text.splitlines():
        if line.strip() and not fence:
            widths = [width for width in widths if len(line) - len(line.lstrip()) >= width]
        mark = None if fence else re.match(r" *(?:[-*]|\d+\.) +(?=\S)", line)
        if mark and parts and lines[-1]:
            lines.append("")
        start = min(widths[-1] if widths else 0, len(line) - len(line.lstrip()))
        lines.append(" " * 4 * len(widths) + line[start:] if line.strip() else "")
        fence ^= line.lstrip().startswith("```")
        parts = bool(widths) and not mark and (parts or not line.strip())
        if mark:
            widths = [*widths, mark.end()]
    return "\n".join(lines) + "\n"


def modules() -> dict[str, Path]:
    """The files of the modules that the reference has, by their names in the package."""
    found = {name: ROOT / "lt_kernels" / name for name in MODULES}
    for path in sorted((ROOT / "lt_kernels" / "integrations").iterdir()):
        if path.stem not in ("__init__", "libraries", "__pycache__"):
            found[f"integrations.{path.stem}"] = path.with_suffix("")
    return {name: one / "__init__.py" if one.is_dir() else one.with_suffix(".py") for name, one in found.items()}


def public(path: Path) -> list[str]:
    """The public names of a module: its `__all__`, else what it defines, or what a package imports."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    if path.name == "__init__.py":
        imported = [node for node in body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
        return sorted(name.asname or name.name for node in imported for name in node.names)
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in defined if not name.startswith("_")]


def reference(name: str, path: Path) -> str:
    """The page of a module."""
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    members = f"\n    options:\n      members: {list(CALLED[name])}" if name in CALLED else ""
    entries = [f"::: lt_kernels.{name}.{one}{members}" for one in public(path)]
    return "\n\n".join([f"# lt_kernels.{name}", about, *entries]) + "\n"


def navigation(pages: Path) -> list[Any]:
    """The sections with their pages; each page is in the first that asks for it."""
    left = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")} - {"README.md"}
    found: dict[str, list[str]] = {}
    named = {one for patterns in SECTIONS.values() for one in patterns}
    for title, patterns in SECTIONS.items():
        found[title] = []
        for pattern in patterns:
            many = "*" in pattern
            these = sorted(one for one in left if Path(one).match(pattern) and Path(one).parent == Path(pattern).parent)
            found[title] += [one for one in these if not many or one not in named or one in patterns]
            left -= set(found[title])
    order = [f"reference/{name}.md" for name in modules()]
    found["Reference"].sort(key=order.index)
    return [{"Home": "README.md"}, *({title: these} for title, these in found.items())]


def build(pages: Path, out: Path) -> None:
    """Have MkDocs build the site from the folder of its pages."""
    from mkdocs.commands.build import build as built
    from mkdocs.config import load_config

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    settings = {"docs_dir": str(pages), "site_dir": str(out), "nav": navigation(pages), "strict": True}
    config = load_config(str(ROOT / "mkdocs.yml"), **settings)
    config.plugins.on_startup(command="build", dirty=False)
    built(config)
    config.plugins.on_shutdown()


def anchor(heading: str, separator: str = "-") -> str:
    """The anchor that GitHub makes of a heading, so that a link holds in both places."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


if __name__ == "__main__":
    raise SystemExit(main())
