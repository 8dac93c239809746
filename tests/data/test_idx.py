"""The sets in MNIST's format: counts, pixels and classes of files written here, and of Debian's Fashion-MNIST."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_kernels.data import idx, load
from lt_kernels.system.files import FileError

PER_CLASS = 20


def idx_bytes(values: np.ndarray) -> bytes:
    """A file of the format, by its description: magic number, sizes as big-endian integers, bytes."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_set(folder: Path, classes: int = 10, prefix: str = "", first: int = 0, packed: bool = False) -> np.ndarray:
    """Images whose pixels are random, but for the first of a row, which is the label; returns those of training."""
    images = {}
    for part, begin in (("train", "train"), ("test", "test" if prefix else "t10k")):
        labels = np.repeat(np.arange(classes), PER_CLASS)
        pixels = np.random.default_rng(len(part)).integers(0, 256, (len(labels), 28, 28))
        pixels[:, 0, 0] = labels
        images[part] = pixels.astype(np.uint8)
        for name, values in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels + first)):
            content = idx_bytes(values)
            path = folder / f"{prefix}{begin}-{name}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return images["train"]


@pytest.mark.parametrize("name", ["fashion-lt", "mnist-lt", "kmnist-lt"])
@pytest.mark.parametrize("packed", [False, True])
def test_counts_pixels_and_classes(name: str, packed: bool, tmp_path: Path):
    written = write_set(tmp_path, packed=packed)
    data = load(name, imbalance=10, root=tmp_path)
    assert data.class_counts.tolist() == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    images, target = data.train
    assert images.dtype == torch.uint8
    assert tuple(images.shape) == (78, 1, 28, 28)
    assert torch.equal(images[:, 0, 0, 0].long(), target)
    assert len(data.test[1]) == 10 * PER_CLASS
    assert data.pixel_mean[0] == pytest.approx(written.mean() / 255, abs=1e-4)
    assert data.pixel_deviation[0] == pytest.approx((written / 255).std(), abs=1e-4)
    assert len(data.class_names) == len(set(data.class_names)) == 10


def test_drawn_or_first(tmp_path: Path):
    written = write_set(tmp_path)
    first = load("mnist-lt", imbalance=10, root=tmp_path, samples="first").train[0][:, 0]
    assert np.array_equal(first[:20], written[:20])
    assert np.array_equal(first[20:35], written[20:35])
    one, same, other = (load("mnist-lt", 10, seed, root=tmp_path).train[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "name, prefix, classes, first",
    [
        ("balanced", "emnist-balanced-", 47, 0),
        ("letters", "emnist-letters-", 26, 1),
        ("digits", "emnist-digits-", 10, 0),
    ],
)
def test_emnist_is_put_upright(name: str, prefix: str, classes: int, first: int, tmp_path: Path):
    written = write_set(tmp_path, classes, prefix, first)
    data = load(f"emnist-{name}-lt", imbalance=1, root=tmp_path)
    assert data.num_classes == classes
    assert np.array_equal(data.train[0][:, 0], written.transpose(0, 2, 1))
    assert data.train[1].tolist() == np.repeat(np.arange(classes), PER_CLASS).tolist()


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"root must be the folder with the files of MNIST \(LeCun.*got None"):
        load("mnist-lt")
    with pytest.raises(ValueError, match=r"dataset-fashion-mnist.*lacks train-images-idx3-ubyte \(or \.gz\)"):
        load("fashion-lt", root=tmp_path)
    with pytest.raises(ValueError, match="samples must be one of"):
        load("fashion-lt", root=tmp_path, samples="last")


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("train-images-idx3-ubyte", b"PNG", "must begin with 0, 0, 8"),
        ("train-images-idx3-ubyte", b"\0\0\x08", "must begin with 0, 0, 8"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "its sizes"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12 + b"\0" * 9, "its sizes .* ask for"),
        ("train-images-idx3-ubyte", b"\x1f\x8b\x08\0", "is not a file in MNIST's format"),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((200, 28, 27))), "must have images"),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(7)), "must have images"),
        ("train-labels-idx1-ubyte", idx_bytes(np.full(200, 10)), r"must hold labels in 0\.\.9"),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.full(200, 10)), r"must hold labels in 0\.\.9"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, says: str, tmp_path: Path):
    write_set(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=says):
        load("mnist-lt", imbalance=2, root=tmp_path)


def test_fashion_of_debian():
    if not Path(idx.SOURCES["fashion-lt"].root or "").is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = load("fashion-lt")
    assert data.class_counts.tolist() == [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]
    assert (data.pixel_mean, data.pixel_deviation) == ((0.286,), (0.353,))
    assert torch.bincount(data.test[1]).tolist() == [1000] * 10
