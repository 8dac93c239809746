"""Formulas of the site as MathML, which browsers draw by themselves: a hook that mkdocs.yml names."""

from __future__ import annotations

import html
import re
from typing import Any

# What pymdownx.arithmatex leaves in a page: \(...\) within a line, \[...\] as a block.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# The converter leaves no space between the name of a function and what it is of.
FUNCTION = re.compile(r"(<mi>(?:log|exp|cos|sin|max|min|arccos|arcsin|arctan)</mi>)(?=<m(?:i|n|sub|sup|frac|over)\b)")


def mathml(formula: str, block: bool) -> str:
    """A formula of LaTeX as MathML.

    Raises:
        ValueError: naming the first command that is not understood, with the formula.
    """
    from latex2mathml.converter import convert

    formula = re.sub(r"(\\[Bb]igg?[lr])\\[lr]vert\b", r"\1|", formula)  # which the converter knows by this name alone
    found = convert(formula.strip(), display="block" if block else "inline")
    unknown = re.search(r"\\[A-Za-z]+", found)
    if unknown is not None:
        raise ValueError(f"{unknown[0]} is not understood in the formula {formula.strip()!r}")
    return FUNCTION.sub(r'\1<mspace width="0.17em"/>', found)


def on_page_content(text: str, page: Any, **more: Any) -> str:
    """The page with its formulas drawn."""

    def drawn(found: re.Match[str]) -> str:
        return mathml(html.unescape(found[3]), found[2] == "[")

    try:
        return FORMULA.sub(drawn, text)
    except ValueError as error:
        raise ValueError(f"{page.file.src_uri}: {error}") from error
