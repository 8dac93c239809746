"""Marked sections of a document, and tables to fill them with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def section(text: str, name: str, made: str) -> str:
    """The text with what is between the markers of that name replaced; as it is if nothing was made."""
    pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end of table: {name} -->)"
    return re.sub(
        pattern, lambda found: f"{found[1]}\n{made}\n\n{found[2]}" if made else found[0], text, flags=re.DOTALL
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines])
