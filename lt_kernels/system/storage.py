"""Files that are there whole or not at all, folders that one process writes at a time, and reading within bounds.

A file is written beside, under a name that nobody can guess and through no link, flushed to the disk, and renamed over
the old one; then its folder is flushed. A kill or a full disk at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

LOCK = "lt-kernels.lock"
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class FolderInUse(RuntimeError):
    """A folder that another process writes to: the message names the folder and the process."""


def write_whole(path: str | Path, content: str | bytes | Iterable[bytes]) -> None:
    """Put `content` (text as UTF-8, bytes, or parts that are made while it is written) at `path`; a link that is there
    is replaced, not followed.

    Errors: OSError that names `path`, which is then as it was.
    """
    _open_new(Path(path), content, keep=False)


def open_whole(path: str | Path, content: str) -> TextIO:
    """Put `content` at `path` as `write_whole` does, and return the file, to be written on from its end.

    Errors: OSError that names `path`.
    """
    return os.fdopen(_open_new(Path(path), content, keep=True), "w", newline="", encoding="utf-8")


def _open_new(path: Path, content: str | bytes | Iterable[bytes], keep: bool) -> int:
    # a path may hold bytes that are no UTF-8, and texts name paths
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    parts = (data,) if isinstance(data, bytes) else data
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = -1
    try:
        with naming(path):
            descriptor = os.open(beside, NEW, 0o666)
            for part in parts:
                write_all(descriptor, part)
            os.fsync(descriptor)
            os.replace(beside, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        if descriptor >= 0:
            os.close(descriptor)
        raise
    if not keep:
        os.close(descriptor)
    return descriptor


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path`: writing to an open file names none, and writing beside another one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def close_whole(file: TextIO) -> None:
    """Flush a file of `open_whole` to the disk and close it; a second time does nothing."""
    if not file.closed:
        with file:
            file.flush()
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder to the disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network and user-space file systems
            raise
    finally:
        os.close(descriptor)


def fresh_folder(folder: Path) -> None:
    """Make an empty folder in place of what is there; a link that is there is removed, not followed."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()


def read_regular(path: str | Path, most: int) -> bytes:
    """What a file holds.

    Errors: OSError; ValueError for what is no regular file and for more than `most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not blocked by a pipe without a writer
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is no regular file")
        return read_bounded(descriptor, most)
    finally:
        os.close(descriptor)


def read_bounded(descriptor: int, most: int) -> bytes:
    """What an open file holds from here on; ValueError for more than `most` bytes."""
    parts, size = [], 0
    while part := os.read(descriptor, min(2**20, most + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError(f"is larger than {most:,} bytes")
    return b"".join(parts)


@contextlib.contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold the name of a file that takes long to make: who wants it too waits, and then finds it.

    The lock is one beside it and ends with its process, as that of `held`. What a killed process left half written of
    the file is removed. Errors: OSError.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock, wait=True)
    _HELD.add(descriptor)
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if TEMPORARY.fullmatch(left.name):
                left.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        _HELD.discard(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` if it is not there, and hold it: nobody else does meanwhile. Removed after, if left empty.

    The lock is the system's, on a file that names the process: it ends with the process, however that ends, and the
    file that a killed process left is taken over. What a killed process left half written is removed. Errors: OSError;
    FolderInUse.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder / LOCK)
    _HELD.add(descriptor)
    try:
        _sign(descriptor)
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                path.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):  # read-only by now, or gone: the system's lock ends all the same
            (folder / LOCK).unlink()
            if made and not any(folder.iterdir()):
                folder.rmdir()
        _HELD.discard(descriptor)
        os.close(descriptor)


_HELD: set[int] = set()


def _let_go() -> None:
    """In a forked child: the lock is the parent's alone, and ends with it."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def _locked(path: Path, wait: bool = False) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # else the holder removed the file between our two calls, and the lock is on a file without a name
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            text = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise FolderInUse(f"{str(path.parent)!r} is being written by {_holder(text)}") from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": started}
    os.ftruncate(descriptor, 0)
    write_all(descriptor, json.dumps(holder).encode())


def _holder(text: bytes) -> str:
    """The process that a lock names, in words; a process that has just made the file has not yet signed it."""
    named = re.fullmatch(rb'\{"pid": (\d+), "host": "([^"\\]*)", "since": "([\d: -]*)"\}', text)
    if named is None:
        return "another process"
    pid, host, since = (part.decode("utf-8", "replace") for part in named.groups())
    return f"process {pid} on {host}, since {since}"
