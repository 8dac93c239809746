"""Text files that people wrote, read alike everywhere: what is odd about one is an error that names the file."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

from lt_kernels.system.storage import read_regular

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
LARGEST = 2**30  # bytes of a text


class FileError(ValueError):
    """A file that cannot be used: the message names it, and says why."""


def as_path(name: str, value: Any) -> Path:
    """An argument as a path. Errors: TypeError or ValueError naming the argument."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}")
    if "\0" in os.fsdecode(value):
        raise ValueError(f"{name} must be a path without zero bytes, got {value!r}")
    return Path(os.fsdecode(value))


def read_text(path: str | Path, what: str = "file") -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put first, its lines ended by "\\n".

    what: how an error calls the file. Errors: FileError naming the file that is missing, is no regular file, may not be
    read, or holds something else than UTF-8 text.
    """
    path = Path(path)
    try:
        content = read_regular(path, LARGEST)
    except OSError as error:
        raise FileError(f"the {what} {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FileError(f"the {what} {str(path)!r} {error}") from error
    if content.startswith(_WIDE):
        raise FileError(f"the {what} {str(path)!r} must be UTF-8, it begins as UTF-16 or UTF-32 does")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileError(f"the {what} {str(path)!r} must be UTF-8, line {line} is not: {error}") from error
    if "\0" in text:
        raise FileError(f"the {what} {str(path)!r} must be text, line {_line(text, chr(0))} holds a zero byte")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(text: str, part: str) -> int:
    return text.count("\n", 0, text.index(part)) + 1
