"""Standard streams on which printing cannot fail for a character, and a pipe that closes is an end, not an error."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

PLAIN = {"\u00b1": "+/-", "\u00b2": "^2", "\u2074": "^4", "\u00d7": "x"}  # plus-minus, powers, times
CLOSED = 141  # 128 + SIGPIPE, as shells have it


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in letters), error.end


codecs.register_error("lt_kernels.plain", _plain)


def shown(text: str, encoding: str) -> str:
    """The text as a terminal of this encoding shows it: `12.3 +/- 0.4` where it has no plus-minus sign."""
    return text.encode(encoding, "lt_kernels.plain").decode(encoding)


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Within, what stdout and stderr cannot encode is written in other words, and a stream that is closed takes
    anything.
    """
    before: list[tuple[Any, str]] = []
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif hasattr(stream, "reconfigure"):
            before.append((stream, stream.errors))
            stream.reconfigure(errors="lt_kernels.plain")
    try:
        yield
    finally:
        for stream, errors in before:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def silence() -> None:
    """Have what a closed pipe or a full disk has not taken go nowhere: else Python complains of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
