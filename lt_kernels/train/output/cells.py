"""Cells of tables that other programs read: text that a spreadsheet would take for a formula, or Markdown for marks."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# What spreadsheets take for a formula (the wide forms where they are set to Chinese, Japanese or Korean), and what we
# have put an apostrophe before.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
NUMBER = re.compile(rf"{_NUMBER}( ± {_NUMBER})?", re.ASCII)


def quoted(value: Any) -> Any:
    """A cell with an apostrophe before what would be a formula; a number, and a number in text, is as it is."""
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return "'" + value
    return value


def unquoted(text: str) -> str:
    """The text that `quoted` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, text that would be a formula quoted."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([quoted(value) for value in row] for row in rows)
    return buffer.getvalue()


def markdown_cell(text: str) -> str:
    """A cell of a Markdown table: in one line, no tag, no bar."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table, its first `left` columns to the left and the others to the right; the cells are Markdown."""
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def rounded(value: float) -> str:
    """Three figures, and of a larger number those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
