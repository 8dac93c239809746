"""Class counts from what a training loop reads: the same from labels, datasets and loaders, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import data

from lt_kernels.priors import class_counts_of, log_prior

LABELS = torch.tensor([1, 1, 0, 1, 3, 0, 1])
COUNTS = [2, 4, 0, 1]
IMAGES = torch.randn(7, 2)


class Kept(data.Dataset):
    """As torchvision's datasets: labels in memory, items that cost something."""

    def __init__(self, name: str, labels: Any, **more: Any) -> None:
        setattr(self, name, labels)
        self.read, self.kept = 0, name
        for key, value in more.items():
            setattr(self, key, value)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, place: int) -> tuple[Tensor, Any]:
        self.read += 1
        return IMAGES[place], self.of(int(LABELS[place]))

    def of(self, label: int) -> int:
        return label


class Read(data.Dataset):
    """Labels that are known by reading alone."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, place: int) -> Any:
        return self.item(place)


class Stream(data.IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True))


def pair(place: int) -> tuple[Tensor, int]:
    return IMAGES[place], int(LABELS[place])


def halves() -> data.Dataset:
    return data.ConcatDataset(
        [data.Subset(Kept("targets", LABELS.tolist()), range(3)), data.Subset(Read(pair), [3, 4, 5, 6])]
    )


class Even(data.Sampler):
    """Whatever it draws, nothing says that it draws evenly."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(7))

    def __len__(self) -> int:
        return 7


SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": lambda: LABELS,
    "tensor of two axes": lambda: LABELS[:6].reshape(2, 3),
    "list": LABELS.tolist,
    "array": lambda: LABELS.numpy().astype(np.int16),
    "a list of samples": lambda: [pair(place) for place in range(7)],
    "TensorDataset": lambda: data.TensorDataset(IMAGES, LABELS, IMAGES),
    "targets, a list": lambda: Kept("targets", LABELS.tolist()),
    "targets, a tensor": lambda: Kept("targets", LABELS),
    "labels, an array": lambda: Kept("labels", LABELS.numpy()),
    "names of classes": lambda: Kept("labels", ["a", "b", "c", "d"]),
    "pairs": lambda: Read(pair),
    "dictionaries": lambda: Read(lambda place: {"image": IMAGES[place], "label": LABELS[place]}),
    "stream": Stream,
    "parts": halves,
    "loader": lambda: data.DataLoader(Kept("targets", LABELS.tolist()), 2, shuffle=True, drop_last=True),
    "loader of a stream": lambda: data.DataLoader(Stream(), 2),
    "loader of a list": lambda: data.DataLoader([pair(place) for place in range(7)], 4),
    "loader of one rank": lambda: data.DataLoader(
        Read(pair), 2, sampler=data.DistributedSampler(Read(pair), num_replicas=2, rank=0)
    ),
    "loader of a part": lambda: data.DataLoader(
        data.ConcatDataset([Read(pair), Read(pair)]), 2, sampler=data.SubsetRandomSampler(list(range(7)))
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_counts_are_those_of_the_labels(kind: str) -> None:
    expected = [2, 3, 0, 1, 0] if kind == "tensor of two axes" else [*COUNTS, 0]
    found = class_counts_of(SOURCES[kind](), 5)
    assert found.tolist() == expected
    assert found.dtype == torch.int64


def test_labels_in_memory_are_taken_without_reading_an_item() -> None:
    dataset = Kept("targets", LABELS.tolist())
    class_counts_of(data.DataLoader(data.Subset(dataset, [0, 1, 2]), 2), 4)
    assert dataset.read == 0


def test_a_changed_label_counts_as_what_it_becomes() -> None:
    swap = [3, 2, 1, 0]
    dataset = Kept("targets", LABELS.tolist(), target_transform=swap.__getitem__, transforms=object())
    assert class_counts_of(dataset, 4).tolist() == COUNTS[::-1]
    assert dataset.read == 0
    for kept in (LABELS, LABELS.numpy()):  # whose items have the label as an integer, which is what is looked up here
        dataset = Kept("targets", kept, target_transform=dict(enumerate(swap)).__getitem__)
        assert class_counts_of(dataset, 4).tolist() == COUNTS[::-1]
        assert dataset.read == 0
    rows = Kept("targets", LABELS[:, None], target_transform=swap.__getitem__)  # whose items are not their entries
    assert class_counts_of(rows, 4).tolist() == COUNTS
    assert rows.read == 7
    joint = Kept("targets", LABELS.tolist(), transforms=object(), transform=None)  # may change both: the items are read
    joint.of = lambda label: swap[label]
    assert class_counts_of(joint, 4).tolist() == COUNTS[::-1]
    assert joint.read == 7


def test_the_column_of_a_table() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    table = datasets.Dataset.from_dict({"text": list("abcdefg"), "label": LABELS.tolist()})
    for dataset in (table, table.with_format("torch"), table.select(range(7)), data.DataLoader(table, 2)):
        assert class_counts_of(dataset, 4).tolist() == COUNTS
    assert class_counts_of(table.to_iterable_dataset(), 4).tolist() == COUNTS


def test_the_labels_of_pandas() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    labels = pandas.Series(LABELS.numpy(), index=range(10, 17))
    assert class_counts_of(labels, 4).tolist() == COUNTS


def test_ignored_labels_do_not_count() -> None:
    labels = torch.where(LABELS == 3, 255, LABELS)
    assert class_counts_of(labels, 3, ignore_index=255).tolist() == [2, 4, 0]
    assert class_counts_of(torch.zeros(0, dtype=torch.int64), 2).tolist() == [0, 0]


UNEVEN: dict[str, Callable[[], Any]] = {
    "WeightedRandomSampler": lambda: data.DataLoader(Read(pair), 2, sampler=data.WeightedRandomSampler([1.0] * 7, 7)),
    "Even": lambda: data.DataLoader(Read(pair), 2, sampler=Even()),
    "list": lambda: data.DataLoader(Read(pair), batch_sampler=[[0, 1], [2, 3]]),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_a_loader_that_may_draw_unevenly_is_refused(name: str) -> None:
    """The prior of what it draws is not that of its dataset; which one is meant, only its user knows."""
    with pytest.raises(ValueError, match=f"target must be a loader that draws all samples alike, got one with {name}"):
        class_counts_of(UNEVEN[name](), 4)


BAD: list[tuple[type[Exception], str, Any]] = [
    (ValueError, "target must be in 0 to 2, got 0 to 3", LABELS),
    (ValueError, "target must be in 0 to 2, got -1 to -1", Read(lambda place: (0, -1))),
    (TypeError, "target must hold class indices, got float64 of list", [0.5, 1.0]),
    (TypeError, "target must hold class indices, got <U3 of list", ["cat", "dog"]),
    (TypeError, "target must hold class indices of one shape, got list", [[0], [1, 2]]),
    (TypeError, r"target must hold class indices \(int64\), got torch.float32", data.TensorDataset(IMAGES, IMAGES)),
    (TypeError, r"target must have items \(input, label\), got tuple", data.TensorDataset(IMAGES)),
    (TypeError, r"target must have items with a label .*, got the keys \['x'\]", Read(lambda place: {"x": 0})),
    (TypeError, r"target must have items \(input, label\), got int", {0: 5, 1: 3}),
    (TypeError, "target must hold class indices, got object of NoneType", None),
]


@pytest.mark.parametrize("error, message, source", BAD)
def test_what_has_no_labels_is_named(error: type[Exception], message: str, source: Any) -> None:
    with pytest.raises(error, match=message):
        class_counts_of(source, 3)


ONE_HOT = torch.nn.functional.one_hot(LABELS, 4)
ROWS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: ONE_HOT,
    "bytes": lambda: ONE_HOT.to(torch.uint8),
    "lists": ONE_HOT.tolist,
    "several classes a row": lambda: ONE_HOT | ONE_HOT.roll(1, 0),
    "TensorDataset": lambda: data.TensorDataset(IMAGES, ONE_HOT),
    "targets": lambda: Kept("targets", ONE_HOT.numpy()),
    "items": lambda: Read(lambda place: (IMAGES[place], ONE_HOT[place])),
    "loader": lambda: data.DataLoader(Read(lambda place: (IMAGES[place], ONE_HOT[place].tolist())), 2),
    "parts": lambda: data.ConcatDataset([data.TensorDataset(IMAGES, ONE_HOT), data.TensorDataset(IMAGES, ONE_HOT)]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_classes_are_not_taken_for_indices(kind: str) -> None:
    """As indices they would be 21 samples of class 0 and 7 of class 1."""
    message = r"got rows of 0 and 1 with one entry for each of 4 classes: .*target.argmax\(1\)"
    with pytest.raises(ValueError, match=message):
        class_counts_of(ROWS[kind](), 4)
    assert class_counts_of(ONE_HOT.argmax(1), 4).tolist() == ONE_HOT.sum(0).tolist() == COUNTS
    assert class_counts_of(ONE_HOT.flatten(), 4).tolist() == [21, 7, 0, 0]


def test_indices_of_every_other_shape_are_counted() -> None:
    """Maps of pixels, a class for each of C samples, and rows of C indices of which one is no 0 or 1."""
    maps = torch.ones(2, 4, 4, dtype=torch.int64).tril()
    assert class_counts_of(maps, 4).tolist() == [12, 20, 0, 0]
    assert class_counts_of(data.DataLoader(data.TensorDataset(IMAGES[:2], maps), 2), 4).tolist() == [12, 20, 0, 0]
    assert class_counts_of(Read(lambda place: (IMAGES[place], maps[0])), 4).tolist() == [42, 70, 0, 0]
    assert class_counts_of(ONE_HOT[0], 4).tolist() == [3, 1, 0, 0]
    assert class_counts_of(ONE_HOT, 5).tolist() == [21, 7, 0, 0, 0]
    assert class_counts_of(ONE_HOT * 2, 4).tolist() == [21, 0, 7, 0]
    assert class_counts_of(LABELS[:, None] * 0, 1).tolist() == [7]


def test_a_loss_says_how_a_dataset_is_counted() -> None:
    """Of a dataset a loss cannot know how many classes there are beside those that occur."""
    for source in (data.TensorDataset(IMAGES, LABELS), data.DataLoader(Read(pair), 2)):
        with pytest.raises(TypeError, match=r"class_counts must be .*: priors\.class_counts_of counts it"):
            log_prior(source)


def test_loaders_and_parts_at_the_edges():
    """A loader without batches, a part without samples, and labels by name beside items that have indices."""
    targets = torch.tensor([0, 0, 1])
    whole = data.TensorDataset(torch.zeros(3, 1), targets)
    assert class_counts_of(data.DataLoader(whole, batch_size=None), 2).tolist() == [2, 1]
    assert class_counts_of(data.Subset(whole, []), 2).tolist() == [0, 0]

    class Named(data.Dataset):
        labels = ("ant", "ant", "bee")

        def __len__(self):
            return 3

        def __getitem__(self, row):
            return torch.zeros(1), ["ant", "bee"].index(self.labels[row])

    assert class_counts_of(Named(), 2).tolist() == [2, 1]
