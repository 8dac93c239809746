"""Pages read back: their tags, which must close one another, their text, ids, links and pictures."""

from __future__ import annotations

import html.parser
import re

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """The tags of a page, with their attributes, and its text; an AssertionError where a tag closes another one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.text = ""
        self.scripts = 0
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.add(tag)
        self.names.update(found)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.scripts += tag == "script"
        if tag == "svg":
            self.pictures.append(found["aria-label"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def outside(self) -> list[str]:
        """Addresses that are neither within the page nor files beside it or below."""
        return [one for one in self.addresses if not re.match(r"data:image/png;base64,|#|[\w][\w./=+-]*$", one)]
