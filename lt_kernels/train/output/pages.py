"""HTML pages that need no file beside them: their style, tables and pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } td.best { font-weight: 700; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #555; font-size: .92rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; } .wide { overflow-x: auto; }
"""


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Mapping[tuple[int, int], bool]) -> str:
    """A table in HTML; the cells (row, column) of `marked` are bold."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for line, row in enumerate(rows):
        parts = [
            f'<td class="best">{html.escape(cell)}</td>' if (line, place) in marked else f"<td>{html.escape(cell)}</td>"
            for place, cell in enumerate(row)
        ]
        body += f"<tr>{''.join(parts)}</tr>\n"
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def html_figure(picture: bytes, title: str, caption: str) -> str:
    """A picture within the page itself, with its caption."""
    data = base64.b64encode(picture).decode()
    text = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">{text}</figure>'
