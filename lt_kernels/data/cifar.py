"""The data sets cifar10-lt and cifar100-lt: photographs of 32 x 32 pixels with an exponential tail."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_kernels import checks
from lt_kernels.data.base import LongTailedData, register
from lt_kernels.data.profiles import choose, exponential_counts

# Of the training images of CIFAR-10, as the published runs centre both sets.
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SIDE = 32


class Archive(NamedTuple):
    """What the "python version" of a CIFAR archive holds."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: tuple[str, str]
    labels: str
    per_class: int


ARCHIVES = {
    "cifar10-lt": Archive(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        ("batches.meta", "label_names"),
        "labels",
        5000,
    ),
    "cifar100-lt": Archive("cifar-100-python", ("train",), "test", ("meta", "fine_label_names"), "fine_labels", 500),
}


class _Plain(pickle.Unpickler):
    """Reads numbers, strings, lists, dicts and numpy arrays; anything else, which could run code, is an error."""

    def find_class(self, module: str, name: str) -> Any:
        rebuild: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
        known = {"_reconstruct": rebuild, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in known:
            return known[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, coding: text.encode(coding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_batch(file: Path) -> dict[str, Any]:
    """The dict that a file of the archive holds, its keys as text."""
    try:
        with file.open("rb") as opened:
            stored = _Plain(opened, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in stored.items()}
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{str(file)!r} is not a file of the CIFAR archive's python version: {error}") from error


def find_folder(name: str, root: str | Path | None) -> Path:
    """The archive's folder: `root` itself or the folder of the archive's own name in it."""
    archive = ARCHIVES[name]
    advice = f"the python version of the archive unpacked, a folder {archive.folder}, or be that folder"
    if root is None:
        raise ValueError(f"root must name the folder that holds {advice}, got None")
    needed = [*archive.train, archive.test, archive.names[0]]
    places = (Path(root) / archive.folder, Path(root))
    for folder in places:
        if all((folder / file).is_file() for file in needed):
            return folder
    folder = places[0] if places[0].is_dir() else places[1]
    missing = ", ".join(file for file in needed if not (folder / file).is_file())
    raise ValueError(f"root must hold {advice}; got {str(root)!r}: {str(folder)!r} lacks {missing}")


def _part(folder: Path, files: Sequence[str], labels: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of some files."""
    batches = [read_batch(folder / file) for file in files]
    for file, batch in zip(files, batches):
        if not {"data", labels} <= set(batch) or np.shape(batch["data"])[1:] != (3 * SIDE * SIDE,):
            raise ValueError(f"{str(folder / file)!r} must hold `data` [N, {3 * SIDE * SIDE}] and `{labels}`")
    images = np.concatenate([np.asarray(batch["data"], np.uint8) for batch in batches])
    target = np.concatenate([np.asarray(batch[labels], np.int64) for batch in batches])
    return torch.from_numpy(images).view(-1, 3, SIDE, SIDE), torch.from_numpy(target)


def _read(name: str, imbalance: float | None, seed: int, root: str | Path | None, samples: str) -> LongTailedData:
    archive = ARCHIVES[name]
    checks.choice("samples", samples, ("drawn", "first"))
    folder = find_folder(name, root)
    images, target = _part(folder, archive.train, archive.labels)
    meta, key = archive.names
    names = [one.decode() if isinstance(one, bytes) else str(one) for one in read_batch(folder / meta)[key]]
    counts = exponential_counts(archive.per_class, len(names), 100 if imbalance is None else imbalance)
    kept = choose(target, counts, seed if samples == "drawn" else None)
    return LongTailedData(
        name=name,
        train=(images[kept], target[kept]),
        test=_part(folder, (archive.test,), archive.labels),
        class_counts=torch.tensor(counts),
        num_classes=len(names),
        input_kind="image",
        class_names=tuple(names),
        pixel_mean=MEAN,
        pixel_deviation=DEVIATION,
    )


@register("cifar10-lt")
def cifar10_lt(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    samples: Literal["drawn", "first"] = "drawn",
) -> LongTailedData:
    """Tell ten kinds of things apart: inputs uint8 [N, 3, 32, 32], target int64 [N] (Krizhevsky, 2009).

    root: the folder that holds the archive's python version unpacked, cifar-10-batches-py. Class c keeps int(5000 *
    (1 / imbalance)^(c / 9)) of its images (Cao et al., 2019; imbalance 100 unless given): `samples` "drawn" with the
    seed, or the "first" ones as they lie. The test set is whole and balanced. `cache_dir` is not used: nothing is
    downloaded or kept.
    Errors: ValueError naming the argument or the files that are missing.
    """
    return _read("cifar10-lt", imbalance, seed, root, samples)


@register("cifar100-lt")
def cifar100_lt(
    imbalance: float | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    samples: Literal["drawn", "first"] = "drawn",
) -> LongTailedData:
    """As `cifar10_lt` with a hundred classes: int(500 * (1 / imbalance)^(c / 99)) images of class c, from
    cifar-100-python.
    """
    return _read("cifar100-lt", imbalance, seed, root, samples)
