"""The site of the documents: it is built without a warning, has every document and public name, and no other host."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_public import NAMES

from tools.mathml import mathml
from tools.site import ROOT, anchor, gather, navigation, nested

BUILDS = all(importlib.util.find_spec(name) for name in ("material", "mkdocstrings", "latex2mathml"))
needs_mkdocs = pytest.mark.skipif(not BUILDS, reason="mkdocs-material, mkdocstrings or latex2mathml is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "tools.site", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(site: Path, page: str) -> str:
    return (site / page / "index.html").read_text(encoding="utf-8")


@needs_mkdocs
@pytest.mark.slow
def test_every_document_is_a_page(site: Path) -> None:
    assert "One loss" in text_of(site, ".")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT).with_suffix("")
        assert (site / (name.parent if name.stem == "README" else name) / "index.html").exists(), name


@needs_mkdocs
@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    for full, (module, _) in NAMES.items():
        assert f'id="lt_kernels.{full}"' in text_of(site, f"reference/{module}"), full
    losses = text_of(site, "reference/losses")
    assert 'id="lt_kernels.losses.Loss.set_weight"' in losses
    assert "training samples of each class [C]" in losses  # from a docstring's Args


@needs_mkdocs
@pytest.mark.slow
def test_formulas_are_drawn_and_nothing_is_fetched(site: Path) -> None:
    formulas = text_of(site, "docs/math")
    assert formulas.count("<math") > 300
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'class="arithmatex"' not in text, path
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//[^>]*>', text)
        fetched += re.findall(r'<link[^>]* rel="?(?:stylesheet|preconnect|icon)[^>]* href="?(?:https?:)?//[^>]*>', text)
        assert fetched == [], path


@needs_mkdocs
@pytest.mark.slow
def test_a_warning_ends_the_build(tmp_path: Path) -> None:
    """Each kind of lost link: to a document, to a heading and to a name of the reference."""
    from tools.site import build

    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "README.md").write_text("# One\n\n[two](two.md)\n")
    (pages / "docs").mkdir()
    (pages / "docs" / "site.css").write_text("")
    for wrong in ("[two](two.md)", "[one](#two)", "[name][lt_kernels.no_such_name]", "![picture](none.png)"):
        (pages / "README.md").write_text(f"# One\n\n{wrong}\n")
        with pytest.raises(SystemExit):
            build(pages, tmp_path / "site")
    (pages / "README.md").write_text("# One\n\n[one](#one)\n")
    build(pages, tmp_path / "site")


def test_each_page_has_one_place(tmp_path: Path) -> None:
    gather(tmp_path / "pages")
    (tmp_path / "pages" / "docs" / "guides" / "another.md").write_text("# Another\n")
    (tmp_path / "pages" / "docs" / "another.md").write_text("# Another\n")
    sections = {title: pages for section in navigation(tmp_path / "pages") for title, pages in section.items()}
    assert sections.pop("Home") == "README.md"
    pages = [page for section in sections.values() for page in section]
    assert sorted([*pages, "README.md"]) == sorted(
        path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.md")
    )
    assert "docs/guides/another.md" in sections["Guides"]
    assert "docs/another.md" in sections["Project"]
    assert "docs/math.md" in sections["Losses"]


GIVEN = """1. one
   more
   - part
     rest

     ```
     code
       deep
     ```
   still one
2. two
3. three

end
  same
"""
MOVED = """1. one
    more
    - part
        rest

        ```
        code
          deep
        ```
    still one

2. two
3. three

end
  same
"""


def test_lists_are_indented_by_four() -> None:
    assert nested(GIVEN) == MOVED
    code = "```\n- no list\n  as it is\n```\n"
    assert nested(code) == code


def test_anchors_are_those_of_github() -> None:
    assert anchor("Wide heads, `f(x)` & more - yes") == "wide-heads-fx--more---yes"


@needs_mkdocs
def test_formulas() -> None:
    assert mathml("n_c", False).startswith("<math")
    assert "<mi>log</mi><mspace" in mathml(r"\log p", False)
    assert 'display="block"' in mathml(r"\frac{1}{n_c}", True)
    with pytest.raises(ValueError, match=r"\\nosuch is not understood in the formula 'a \\+\\nosuch'"):
        mathml(r"a \nosuch", False)
