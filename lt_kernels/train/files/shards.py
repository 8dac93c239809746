"""What ranks hold a share of each: written beside a checkpoint by torch.distributed.checkpoint, and read for any ranks.

The shards lie in a folder of their own, new for each checkpoint. The checkpoint's file names the folder, has an index
of plain values and a checksum of each file of shards, and is written last: whatever ends a process before leaves the
checkpoint before whole. torch's own index, a pickle, lies there for other programs and is never read here.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata as kept
from torch.distributed.checkpoint.api import CheckpointException

from lt_kernels.system import storage
from lt_kernels.system.interrupts import Interrupted
from lt_kernels.train.errors import ConfigError, RunFailed

NAME = re.compile(r"shards-[0-9a-f]{16}")
CHUNK = 2**24


class _Writer(dcp.FileSystemWriter):
    """torch's writer of shards, with the system's error in the place of what torch makes of a file that ends early, and
    with the places of all shares in what `save` returns, which those of torch 2.11 are not.
    """

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this rank's shares."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    def finish(self, metadata: Any, results: Any) -> None:
        """Write torch's index, from what each rank has written."""
        super().finish(metadata, results)
        metadata.storage_data = {one.index: one.storage_data for written in results for one in written}


class Piece(NamedTuple):
    """Where a share lies, in the words of torch's reader."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


class _Reader(dcp.FileSystemReader):
    """torch's reader of shards, each of which it loads as plain tensors, by another index than the pickled one."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self.index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> kept.Metadata:
        """The index in torch's form."""
        tensors: dict[str, Any] = {}
        pieces = {}
        for name, (size, shares) in self.index.items():
            chunks = [kept.ChunkStorageMetadata(torch.Size(first), torch.Size(sizes)) for first, sizes, _ in shares]
            tensors[name] = kept.TensorStorageMetadata(kept.TensorProperties(), torch.Size(size), chunks)
            pieces.update({kept.MetadataIndex(name, first): Piece(*piece) for first, _, piece in shares})
        return kept.Metadata(tensors, storage_data=pieces, storage_meta=kept.StorageMeta())


def _index(metadata: Any) -> dict[str, Any]:
    """torch's index as plain values: of each tensor its size, and each share's offsets, sizes and piece of a file."""
    found = {}
    for name, tensor in metadata.state_dict_metadata.items():
        shares = []
        for chunk in tensor.chunks:
            where = metadata.storage_data[kept.MetadataIndex(name, chunk.offsets)]
            piece = [where.relative_path, where.offset, where.length]
            shares.append([[*chunk.offsets], [*chunk.sizes], piece])
        found[name] = [[*tensor.size], shares]
    return found


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Write tensors into a new folder within `folder`; each rank its shares. Return what `read_shards` wants to know.

    Errors: on every rank OSError, or RunFailed where the cause is another one.
    """
    names = [f"shards-{secrets.token_hex(8)}"]
    dist.broadcast_object_list(names, src=0)
    inside = folder / names[0]
    with _plainly(inside):
        index = _index(dcp.save(dict(tensors), storage_writer=_Writer(inside)))
    storage.sync_folder(inside)
    storage.sync_folder(folder)
    files = sorted({piece[0] for _, shares in index.values() for *_, piece in shares})
    sums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sums, _checksums(inside, files[dist.get_rank() :: len(sums)]))
    return {"folder": inside.name, "index": index, "sha256": {name: one for part in sums for name, one in part.items()}}


def read_shards(about: Mapping[str, Any], folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole ones or this rank's shares, from what `write_shards` wrote and `check_shards` has checked.

    Errors: ConfigError naming the folder, where it is none of shards, or a file that was not checked; OSError;
    RunFailed.
    """
    inside = _inside(about, folder)
    for name, (_, shares) in about["index"].items():
        for *_, piece in shares:
            if piece[0] not in about["sha256"]:
                raise ConfigError(f"{str(folder)!r} holds a checkpoint whose {name} lies in the unknown {piece[0]!r}")
    alone = not (dist.is_available() and dist.is_initialized())
    with _plainly(inside):
        dcp.load(dict(tensors), storage_reader=_Reader(inside, about["index"]), no_dist=alone)


def check_shards(about: Mapping[str, Any], folder: Path, rank: int, world: int) -> None:
    """Check the files, of several ranks each its part of them.

    Errors: ConfigError naming the folder, where it is none of shards, or a file is missing or changed.
    """
    inside, wanted = _inside(about, folder), dict(about["sha256"])
    mend = "put a copy of it back, or remove the checkpoint to begin anew"
    there = sorted(path.name for path in inside.iterdir() if path.is_file()) if inside.is_dir() else []
    if not set(wanted) <= set(there):
        raise ConfigError(f"{str(inside)!r} must hold the files {', '.join(sorted(wanted))}, got {there}; {mend}")
    for name, found in _checksums(inside, sorted(wanted)[rank::world]).items():
        if found != wanted[name]:
            raise ConfigError(f"{str(inside / name)!r} was changed or damaged since it was written; {mend}")


def _inside(about: Mapping[str, Any], folder: Path) -> Path:
    name = str(about["folder"])
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{str(folder)!r} holds a checkpoint that names the folder {name!r}")
    return folder / name


def remove_shards(folder: Path, but: str | None = None) -> None:
    """Remove the folders of shards in `folder`, other than the one that is named."""
    for path in folder.iterdir():
        if NAME.fullmatch(path.name) and path.name != but and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _checksums(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of files of a folder."""
    found = {}
    for name in names:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
        found[name] = digest.hexdigest()
    return found


@contextmanager
def _plainly(folder: Path) -> Iterator[None]:
    """Without torch's warnings, of its own deprecated types and of a process that is alone; and what fails on any rank
    is raised as what it is: a signal, an error of the system, or RunFailed, on every rank the same.
    """
    with warnings.catch_warnings(), storage.naming(folder):
        warnings.filterwarnings("ignore", module=r"torch\..*")
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            for cause in causes:
                if isinstance(cause, (Interrupted, OSError)):
                    raise cause from None
            raise RunFailed(f"{str(folder)!r} could not be written or read: {causes[0]}") from causes[0]
