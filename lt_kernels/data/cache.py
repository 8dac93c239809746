"""Arrays that take long to make, kept in a file that tells when it is damaged or another one's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lt_kernels.system.files import FileError
from lt_kernels.system.storage import waited_for, write_whole

Arrays = dict[str, np.ndarray]
FORMAT = b"lt_kernels arrays 1\n"  # another number where the arrays mean something else
DIGEST = 64  # characters of a checksum


def default_cache_dir() -> Path:
    """Return $XDG_CACHE_HOME/lt_kernels, or ~/.cache/lt_kernels where that variable holds no absolute path."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named if os.path.isabs(named) else os.path.expanduser("~/.cache")) / "lt_kernels"


def _head(path: Path, content: bytes) -> bytes:
    """What begins a file of this name and content."""
    return FORMAT + hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest().encode() + b"\n"


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a file, or those that `make` returns, which are then written there in one atomic step.

    A file that is damaged, cut short, of another format or copied from another name is made anew. Errors: FileError
    where the folder cannot be written to, before anything is made.
    """
    stored = path.read_bytes() if path.is_file() else b""
    content = stored[len(FORMAT) + DIGEST + 1 :]
    if content and stored.startswith(_head(path, content)):
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    made = _made(path, make)
    buffer = io.BytesIO()
    np.savez(buffer, **made)  # type: ignore[arg-type]
    with _naming(path):
        write_whole(path, _head(path, buffer.getvalue()) + buffer.getvalue())
    return made


def mapped(path: Path, shape: Sequence[int], parts: Iterable[bytes]) -> np.ndarray:
    """Bytes uint8 of this shape from a file that is mapped into memory; made of `parts`, one after the other, if the
    file is not there.

    It is there whole or not at all, and of several processes that want it one makes it. Errors: FileError where the
    folder cannot be written to, before anything is made.
    """
    size = math.prod(shape)

    def there() -> bool:
        return path.is_file() and path.stat().st_size == size

    if not there():
        _writable(path)
        with _naming(path), waited_for(path):
            if not there():
                write_whole(path, parts)
    return np.memmap(path, np.uint8, "c", shape=tuple(shape))


def _made(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """What `make` returns, which takes long."""
    _writable(path)
    return make()


def _writable(path: Path) -> None:
    """Find a folder that cannot be written to before anything is made for it."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        wanted = "cache_dir must be a folder that can be written to (without it: $XDG_CACHE_HOME/lt_kernels)"
        raise FileError(f"{wanted}, got {str(path.parent)!r}: {path.name}: {error.strerror}") from error
