"""What ranks hold a share of each: written beside a checkpoint by torch.distributed.checkpoint, and read for any ranks.

The shards lie in a folder of their own, new for each checkpoint. The checkpoint's file names the folder and has a
checksum of each file in it, and is written last: whatever ends a process before leaves the checkpoint before whole.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from lt_kernels.train.errors import ConfigError

NAME = re.compile(r"shards-[0-9a-f]{16}")
CHUNK = 2**24


def is_sharded(value: Any) -> bool:
    """Whether a value is a tensor of which each rank holds a share."""
    return hasattr(value, "placements")


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Write tensors into a new folder within `folder`; each rank its shares. Return what `read_shards` wants to know.

    Errors: those of torch.distributed.checkpoint, on every rank.
    """
    names = [f"shards-{secrets.token_hex(8)}"]
    dist.broadcast_object_list(names, src=0)
    inside = folder / names[0]
    with _silent():
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(inside))
    rank, world = dist.get_rank(), dist.get_world_size()
    sums: list[Any] = [None] * world
    dist.all_gather_object(sums, _checksums(inside, lambda place: place % world == rank))
    return {"folder": inside.name, "sha256": {name: found for part in sums for name, found in part.items()}}


def read_shards(about: Mapping[str, Any], folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole ones or this rank's shares, from what `write_shards` wrote.

    Errors: ConfigError naming the folder, where a file is missing or changed.
    """
    inside = folder / str(about["folder"])
    if NAME.fullmatch(inside.name) is None:
        raise ConfigError(f"{str(folder)!r} holds a checkpoint that names the folder {inside.name!r}")
    alone = not (dist.is_available() and dist.is_initialized())
    with _silent():
        dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(inside), no_dist=alone)


def check_shards(about: Mapping[str, Any], folder: Path, rank: int, world: int) -> None:
    """Check the files, of several ranks each its part of them.

    Errors: ConfigError naming the folder, where a file is missing or changed.
    """
    inside, wanted = folder / str(about["folder"]), dict(about["sha256"])
    mend = "put a copy of it back, or remove the checkpoint to begin anew"
    there = sorted(path.name for path in inside.iterdir()) if inside.is_dir() else []
    if there != sorted(wanted):
        raise ConfigError(f"{str(inside)!r} must hold the files {', '.join(sorted(wanted))}, got {there}; {mend}")
    for name, found in _checksums(inside, lambda place: place % world == rank).items():
        if found != wanted[name]:
            raise ConfigError(f"{str(inside / name)!r} was changed or damaged since it was written; {mend}")


def remove_shards(folder: Path, but: str | None = None) -> None:
    """Remove the folders of shards in `folder`, other than the one that is named."""
    for path in folder.iterdir():
        if NAME.fullmatch(path.name) and path.name != but and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _checksums(folder: Path, mine: Callable[[int], bool]) -> dict[str, str]:
    """The SHA-256 of those files of a folder whose place in the order of names is `mine`."""
    found = {}
    for place, path in enumerate(sorted(folder.iterdir())):
        if mine(place):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(CHUNK):
                    digest.update(part)
            found[path.name] = digest.hexdigest()
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Without torch's warnings: of its own deprecated types, and of a process that is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\..*")
        yield
