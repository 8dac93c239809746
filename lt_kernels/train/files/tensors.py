"""Files of tensors: our own with a checksum of every byte, and other people's; nothing in either is executed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from lt_kernels.system.storage import read_regular, write_whole
from lt_kernels.train.errors import ConfigError

# torch's files are ZIP archives: the seal is the archive's comment, which torch and every other reader pass over
SEAL = b"lt-kernels sha256 "
LENGTH = len(SEAL) + 64
END = b"PK\x05\x06"
MOST = 2**40


def write_sealed(content: Any, path: Path) -> None:
    """Save `content` as torch.save does, with a checksum of the whole file at its end.

    Errors: OSError that names `path`, which is then as it was.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getbuffer()
    if bytes(data[-22:-18]) != END or bytes(data[-2:]) != b"\0\0":
        raise RuntimeError("torch.save wrote no ZIP archive, or one with a comment")
    data[-2:] = LENGTH.to_bytes(2, "little")
    seal = SEAL + hashlib.sha256(data).hexdigest().encode()
    data.release()
    buffer.write(seal)
    write_whole(path, buffer.getvalue())


def read_sealed(path: Path) -> Any:
    """What `write_sealed` wrote, on the CPU.

    Errors: ConfigError naming the file: it cannot be read, is empty, is not of this package, or is damaged.
    """
    wanted = f"{str(path)!r} must be a checkpoint that lt-kernels wrote"
    mend = "put a copy of it back, or remove it to begin anew"
    data = _bytes_of(path)
    if not data:
        raise ConfigError(f"{wanted}, got an empty file; {mend}")
    body, seal = memoryview(data)[:-LENGTH], data[-LENGTH:]
    if not seal.startswith(SEAL):
        raise ConfigError(f"{wanted}, got a file without its checksum (cut short, or another program's); {mend}")
    if seal[len(SEAL) :] != hashlib.sha256(body).hexdigest().encode():
        raise ConfigError(f"{wanted}, got one that was changed or damaged since: its checksum differs; {mend}")
    return _tensors(data, f"{wanted}")


def read_tensors(path: str | Path) -> Any:
    """What torch.save wrote, on the CPU: tensors and plain values only.

    Errors: ConfigError naming the file.
    """
    return _tensors(_bytes_of(Path(path)), f"{str(path)!r} must be a file of tensors that torch.save wrote")


def _bytes_of(path: Path) -> bytes:
    try:
        return read_regular(path, MOST)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} {error}") from error


def _tensors(data: bytes, wanted: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # of a file that is none torch raises nearly anything, and advises to execute what is in it
        kind = type(error).__name__
        raise ConfigError(f"{wanted}, got one that is damaged or holds more than tensors ({kind})") from None
