"""Lists of pictures: a text with "path label" a line, or a .json as iNaturalist's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from lt_kernels.system.files import FileError, read_text

BLANKS = " \t"  # what separates; a path may hold some
MOST_CLASSES = 2**31 - 1


class Listed(NamedTuple):
    """What a list names: paths, class indices, and where in the list each stands, for errors."""

    files: list[str]
    labels: list[int]
    places: list[str]


def read_list(file: Path) -> Listed:
    """Files and class indices of a list, in UTF-8, with or without a byte order mark.

    Blanks or tabs separate a path, which may hold blanks, from its label in digits; empty lines say nothing, and a line
    that comes twice counts twice.

    Errors: FileError naming the file and the line (of a .json: the annotation) that does not fit.
    """
    text = read_text(file, "list")
    listed = _from_json(file, text) if file.suffix == ".json" else _from_lines(file, text)
    if not listed.files:
        raise FileError(f"the list {str(file)!r} must name an image, got none")
    return listed


def _from_lines(file: Path, text: str) -> Listed:
    listed = Listed([], [], [])
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        both = line.strip(BLANKS)
        before = max(both.rfind(blank) for blank in BLANKS)
        path, label = both[: before + 1].strip(BLANKS).lstrip("/"), both[before + 1 :]
        if not path or not (label.isascii() and label.isdigit()):  # int() reads the digits of other scripts, too
            odd = f"got {_short(line)} in line {number}, where a label is digits 0 to 9"
            raise FileError(f"the list {str(file)!r} must have `path label` a line, {odd}")
        _add(listed, file, path, int(label[:1000]), f"line {number}")
    return listed


def _from_json(file: Path, text: str) -> Listed:
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"the list {str(file)!r} must hold `images` and `annotations` as JSON: {error}") from error
    images, notes = (_objects(file, stored, key) for key in ("images", "annotations"))
    names = {_whole(file, "images", n, one, "id"): _path(file, n, one) for n, one in enumerate(images)}
    if len(names) != len(images):
        raise FileError(f"the list {str(file)!r} must give each of `images` an id of its own")
    listed = Listed([], [], [])
    for number, note in enumerate(notes):
        image = _whole(file, "annotations", number, note, "image_id")
        if image not in names:
            raise FileError(f"the list {str(file)!r} has no image of id {image}, which annotations[{number}] names")
        label = _whole(file, "annotations", number, note, "category_id")
        _add(listed, file, names[image].lstrip("/"), label, f"annotations[{number}]")
    return listed


def _objects(file: Path, stored: Any, key: str) -> list[Any]:
    value = stored.get(key) if isinstance(stored, dict) else None
    if not isinstance(value, list):
        raise FileError(f"the list {str(file)!r} must hold `images` and `annotations`, two lists; {key} is not there")
    return value


def _whole(file: Path, key: str, number: int, item: Any, name: str) -> int:
    value = item.get(name) if isinstance(item, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise FileError(f"the list {str(file)!r} must have an integer `{name}` in {key}[{number}], got {_short(value)}")
    return value


def _path(file: Path, number: int, item: Any) -> str:
    value = item.get("file_name")
    if not isinstance(value, str) or not value.strip("/ ") or "\0" in value:
        raise FileError(
            f"the list {str(file)!r} must have a path as `file_name` in images[{number}], got {_short(value)}"
        )
    return value


def _add(listed: Listed, file: Path, path: str, label: int, place: str) -> None:
    if not 0 <= label < MOST_CLASSES:
        raise FileError(
            f"the list {str(file)!r} must have labels in 0..{MOST_CLASSES - 1}, got {_short(label)} in {place}"
        )
    listed.files.append(path)
    listed.labels.append(label)
    listed.places.append(place)


def _short(value: object) -> str:
    """A value as an error shows it: a line of a damaged file may be very long."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
