"""YAML that people write by hand: plain values, lists and mappings, within bounds, and nothing that makes objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lt_kernels.system.storage import read_bounded
from lt_kernels.train import require
from lt_kernels.train.errors import ConfigError

BYTES = 2**18
VALUES = 20_000  # a value that an alias repeats counts each time
DEPTH = 20
LETTERS = 1000  # of a value without quotes


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Errors: ConfigError naming the file, where it cannot be read, is no YAML, or is out of bounds.
    """
    where = f"config {str(path)!r}"
    try:
        with open(path, "rb") as file:  # a pipe, too: of another program's output
            content = read_bounded(file.fileno(), BYTES)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not YAML: byte {error.start} is not UTF-8") from error
    return parse(text, where)


def written(value: Any) -> str:
    """A value as YAML that `read_yaml` reads back, mappings in their own order."""
    return require("yaml").safe_dump(value, sort_keys=False)


def parse(text: str, where: str) -> Any:
    """The value of a YAML text; an error begins with `where`."""
    yaml = require("yaml")
    try:
        _check_bounds(yaml, text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise ConfigError(f"{where} is not YAML: {getattr(error, 'problem', None) or error}{line}") from error
    except (ValueError, OverflowError) as error:  # a date, or a number, that there is not
        raise ConfigError(f"{where} is not YAML: {error}") from error


def _check_bounds(yaml: Any, text: str) -> None:
    """Refuse tags, aliases of themselves, and too many or too deep values, before anything is made of them."""
    open_counts, anchors, inside = [0], {}, []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "tag", None) not in (None, "!"):
            raise ValueError(f"values must be plain, without tags, got {event.tag!r} in line {_line(event)}")
        if isinstance(event, yaml.CollectionEndEvent):
            _close(open_counts, anchors, inside.pop(), open_counts.pop())
        elif isinstance(event, yaml.CollectionStartEvent):
            open_counts.append(1)
            inside.append(event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in inside:
                raise ValueError(
                    f"an alias must not be within its own value, got *{event.anchor} in line {_line(event)}"
                )
            open_counts[-1] += anchors.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if event.implicit[0] and len(event.value) > LETTERS:
                raise ValueError(f"values without quotes must have at most {LETTERS} letters, got {len(event.value)}")
            _close(open_counts, anchors, event.anchor, 1)
        if sum(open_counts) > VALUES or len(inside) > DEPTH:
            allowed = f"at most {VALUES:,} values, nested at most {DEPTH} deep"
            raise ValueError(f"it must hold {allowed}, got more in line {_line(event)}")


def _close(open_counts: list[int], anchors: dict[str, int], anchor: str | None, count: int) -> None:
    open_counts[-1] += count
    if anchor is not None:
        anchors[anchor] = count


def _line(event: Any) -> int:
    return event.start_mark.line + 1
