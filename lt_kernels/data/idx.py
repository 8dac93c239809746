"""The data sets in MNIST's file format, images of 28 x 28 grey pixels, with an exponential tail: fashion-lt, ..."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.profiles import choose, exponential_counts
from lt_kernels.system.files import FileError, as_path
from lt_kernels.system.storage import read_regular

SIDE = 28
LARGEST = 2**30  # bytes of a file, packed and unpacked; the largest of these sets has 548 million
UNSIGNED_BYTES = 0x08  # the type of the values, in the third byte of a file


class Source(NamedTuple):
    """Where a data set comes from: what it is called, its classes, its folder, and how its files are named."""

    title: str
    names: tuple[str, ...]
    root: str | None = None
    package: str = ""
    prefix: str = ""
    first: int = 0  # the label of the first class
    sideways: bool = False  # whether the images lie on their side


_DIGITS = tuple(str(digit) for digit in range(10))
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_FASHION = "/usr/share/datasets/fashion-mnist"
_EMNIST = "EMNIST (Cohen et al., 2017)"
SOURCES = {
    "fashion-lt": Source("Fashion-MNIST (Xiao et al., 2017)", _CLOTHES, _FASHION, "dataset-fashion-mnist"),
    "mnist-lt": Source("MNIST (LeCun et al., 1998)", _DIGITS),
    "kmnist-lt": Source("Kuzushiji-MNIST (Clanuwat et al., 2018)", tuple("おきすつなはまやれを")),
    "emnist-balanced-lt": Source(
        _EMNIST, (*_DIGITS, *_LETTERS, *"abdefghnqrt"), prefix="emnist-balanced-", sideways=True
    ),
    "emnist-letters-lt": Source(_EMNIST, _LETTERS, prefix="emnist-letters-", first=1, sideways=True),
    "emnist-digits-lt": Source(_EMNIST, _DIGITS, prefix="emnist-digits-", sideways=True),
}


def read_idx(file: Path) -> np.ndarray:
    """The array of unsigned bytes that a file in MNIST's format holds, packed by gzip or not.

    Errors: FileError naming the file that holds something else, or more than LARGEST bytes.
    """
    try:
        content = read_regular(file, LARGEST)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(LARGEST + 1)
        return _array(content)
    except (OSError, EOFError, ValueError) as error:
        raise FileError(f"{str(file)!r} is not a file in MNIST's format: {error}") from error


def _array(content: bytes) -> np.ndarray:
    """Two zeros, the type, the number of dimensions, their lengths as big-endian integers, and the values."""
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise ValueError(f"it must begin with 0, 0, {UNSIGNED_BYTES}, got {list(content[:3])}")
    head = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:head], ">u4").tolist() if len(content) >= head else []
    size = int(np.prod(shape, dtype=object)) if shape else 0
    if len(content) != head + size:
        raise ValueError(f"its sizes {shape} ask for {head + size:,} bytes, but it has {len(content):,}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _find(source: Source, root: Path, name: str) -> Path:
    for ending in ("", ".gz"):
        if (root / f"{source.prefix}{name}{ending}").is_file():
            return root / f"{source.prefix}{name}{ending}"
    advice = f", which Debian's package {source.package} puts into {source.root}" if source.package else ""
    raise ValueError(
        f"root must be the folder with the files of {source.title}{advice}; {str(root)!r} lacks "
        f"{source.prefix}{name} (or .gz)"
    )


def _part(source: Source, root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, 28, 28] and labels int64 [N] of "train" or "test"."""
    begin = part if part == "train" or source.prefix else "t10k"
    files = [_find(source, root, f"{begin}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    images, labels = (read_idx(file) for file in files)
    if images.shape[1:] != (SIDE, SIDE) or labels.shape != images.shape[:1]:
        shapes = f"{list(images.shape)} and {list(labels.shape)}"
        raise FileError(f"{str(root)!r} must have images [N, {SIDE}, {SIDE}] and labels [N], got {shapes}")
    target = torch.from_numpy(labels.astype(np.int64)) - source.first
    span = int(target.min()) if len(target) else 0, int(target.max()) if len(target) else -1
    if not 0 <= span[0] <= span[1] < len(source.names):
        wanted = f"{source.first}..{source.first + len(source.names) - 1}"
        raise FileError(f"{str(files[1])!r} must hold labels in {wanted}, got others or none")
    pixels = torch.from_numpy(images.copy())
    return (pixels.mT.contiguous() if source.sideways else pixels).unsqueeze(1), target


def _read(name: str, imbalance: float | None, seed: int, root: Any, samples: str) -> LongTailedData:
    source = SOURCES[name]
    checks.choice("samples", samples, ("drawn", "first"))
    if root is None:
        raise ValueError(f"root must be the folder with the files of {source.title}, got None")
    folder = as_path("root", root)
    images, target = _part(source, folder, "train")
    rarest = int(torch.bincount(target, minlength=len(source.names)).min())
    counts = exponential_counts(rarest, len(source.names), 100 if imbalance is None else imbalance)
    kept = choose(target, counts, seed if samples == "drawn" else None)
    mean, deviation = _moments(images)
    return LongTailedData(
        name=name,
        train=(images[kept], target[kept]),
        test=_part(source, folder, "test"),
        class_counts=torch.tensor(counts),
        num_classes=len(counts),
        input_kind="image",
        class_names=source.names,
        pixel_mean=(mean,),
        pixel_deviation=(deviation,),
    )


def _reader(name: str) -> Callable[..., LongTailedData]:
    source = SOURCES[name]

    def read(
        imbalance: float | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        root: str | Path | None = source.root,
        samples: Literal["drawn", "first"] = "drawn",
    ) -> LongTailedData:
        return _read(name, imbalance, seed, root, samples)

    where = f" (without it {source.root}, of Debian's package {source.package})" if source.root else ""
    read.__name__ = name.replace("-", "_")
    read.__doc__ = f"""{source.title}: inputs uint8 [N, 1, 28, 28] of {len(source.names)} classes, target int64 [N].

    root: the folder with its files in MNIST's format, packed by gzip or not{where}. Class c of C keeps
    int(n_max * (1 / imbalance)^(c / (C - 1))) of its training images, n_max those of the rarest class (imbalance 100
    unless given): `samples` "drawn" with the seed, or the "first" ones as they lie. The test set is whole. `cache_dir`
    is not used: nothing is downloaded or kept. Errors: ValueError naming the argument or the file that is missing,
    FileError naming one that holds something else.
    """
    return read


def _moments(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of pixels uint8, in 0..1 and to four places, from how often each value occurs."""
    count = torch.bincount(images.flatten(), minlength=256).double()
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (count * level).sum() / count.sum()
    deviation = (count * (level - mean) ** 2).sum().div(count.sum()).sqrt()
    return round(float(mean), 4), round(float(deviation), 4)


fashion_lt, mnist_lt, kmnist_lt, *_ = (register(name)(_reader(name)) for name in SOURCES)
