"""The fonts of the machine that have every character of the classes, and which of them are for the test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_kernels.data.cache import Arrays, kept
from lt_kernels.system.files import FileError

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
ENDINGS = (".ttf", ".ttc", ".otf", ".otc")
REGIONS = ("SC", "CN")  # the face to take of a collection that has one for each region: simplified characters
# One of each style: a hand with the brush, a printed serif, and strokes of one width.
TEST = ("LXGW WenKai", "HanaMin", "WenQuanYi Zen Hei")
OWN = 0.9  # of the characters have a glyph of their own: a font of last resort has one for thousands
PACKAGES = (
    "for the test fonts-lxgw-wenkai, fonts-hanazono, fonts-wqy-zenhei, and for training fonts-noto-cjk, "
    "fonts-noto-cjk-extra, fonts-wqy-microhei, fonts-cns11643-kai, fonts-cns11643-sung"
)


class Font(NamedTuple):
    """A face of a font's file: its place in a collection, its family's name and its style."""

    path: str
    index: int
    family: str
    style: str


def font_files(places: Iterable[str | Path] | None) -> list[Path]:
    """The files of fonts in these folders and files, or in those where a system keeps its own, in a fixed order.

    A link counts as the file that it leads to, so that no font is there twice.

    Errors: ValueError for what is neither a font's file nor a folder.
    """
    found: set[Path] = set()
    for place in FOLDERS if places is None else places:
        path = Path(place).expanduser()
        if path.is_dir():
            found |= {one.resolve() for one in path.rglob("*") if one.suffix.lower() in ENDINGS and one.is_file()}
        elif path.is_file():
            found.add(path.resolve())
        elif places is not None:
            raise ValueError(f"fonts must be folders and files that there are, got {str(place)!r}")
    return sorted(found)


def covering(characters: str, places: Iterable[str | Path] | None, cache_dir: Path) -> list[Font]:
    """The fonts that have all characters, one face a file; what was found is kept in `cache_dir`."""
    files = font_files(places)
    listing = [(str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((listing, characters)).encode()).hexdigest()[:16]

    def look() -> Arrays:
        fonts = [font for file in files if (font := _face(file, frozenset(map(ord, characters)))) is not None]
        return {"fonts": np.array([[str(part) for part in font] for font in fonts], np.str_).reshape(-1, 4)}

    rows = kept(cache_dir / f"hanzi-fonts-{digest}.arrays", look)["fonts"].tolist()
    return [Font(path, int(index), family, style) for path, index, family, style in rows]


def _face(file: Path, codes: frozenset[int]) -> Font | None:
    """The face of a file that has all these characters, if one has, that of the simplified ones first."""
    from fontTools.ttLib import TTCollection, TTFont, TTLibError

    try:
        with file.open("rb") as opened:
            collection = opened.read(4) == b"ttcf"
            faces: Sequence[Any] = TTCollection(opened, lazy=True).fonts if collection else [TTFont(opened, lazy=True)]
            named = [(str(one["name"].getBestFamilyName()), index) for index, one in enumerate(faces)]
            regional = [one for one in named if one[0].split()[-1] in REGIONS]
            family, index = (regional or named)[0]
            face = faces[index]
            # Numbers for names, which tell glyphs apart as well: a font may have a broken table of names.
            face.setGlyphOrder([f"glyph{number}" for number in range(face["maxp"].numGlyphs)])
            glyphs = face["cmap"].getBestCmap() or {}
            if not codes <= glyphs.keys() or len({glyphs[code] for code in codes}) < OWN * len(codes):
                return None
            return Font(str(file), index, family, str(face["name"].getBestSubFamilyName()))
    except (TTLibError, KeyError, OSError, ValueError, AssertionError):
        return None  # bitmaps, and files that are no fonts: they have no outlines of these characters


def divide(fonts: Sequence[Font], test: Sequence[str] | None) -> tuple[list[Font], list[Font]]:
    """The fonts for training, and those for the test: whose family begins with one of these names.

    Errors: FileError naming the packages that have fonts, where there is none for either.
    """
    begin = TEST if test is None else tuple(test)
    held = [font for font in fonts if font.family.startswith(tuple(begin))]
    rest = [font for font in fonts if font not in held]
    for part, some in (("the test", held), ("training", rest)):
        if not some:
            known = ", ".join(sorted({font.family for font in fonts})) or "none"
            raise FileError(
                f"hanzi-lt needs a font for {part} that has all characters; the families here that do: {known}. "
                f"Debian's packages have some: {PACKAGES}. test_fonts says how the families of the test begin, here "
                f"with {', '.join(begin)}"
            )
    return rest, held
