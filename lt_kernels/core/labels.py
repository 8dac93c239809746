"""The class indices of what a training loop reads: a tensor, an array, a dataset or a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from lt_kernels.core import checks

_NAMES = ("targets", "labels", "target", "label")  # as datasets, and the entries of dictionaries, are used to say
# These draw every sample as often as any other, so that the counts of the dataset are those of an epoch.
_EVEN = (data.SequentialSampler, data.RandomSampler, data.DistributedSampler)


def labels_of(source: Any) -> Iterator[Tensor]:
    """Class indices of a tensor, an array, a sequence of integers, a dataset or a loader, in parts [N, ...] of samples.

    Raises:
        TypeError, ValueError: naming `target`, if that has no class indices, or a loader draws unevenly.
    """
    if isinstance(source, data.DataLoader):
        return labels_of(_drawn_from(source))
    if isinstance(source, data.Subset):
        known = _kept_labels(source.dataset)
        return _one_pass(source) if known is None else iter([known[torch.as_tensor(source.indices, dtype=torch.int64)]])
    if isinstance(source, data.ConcatDataset):
        return (part for dataset in source.datasets for part in labels_of(dataset))
    known = _kept_labels(source)
    if known is not None:
        return iter([known])
    if isinstance(source, data.Dataset) or (hasattr(source, "__getitem__") and not _is_plain(source)):
        return _one_pass(source)
    return iter([_indices(source)])


def _drawn_from(loader: data.DataLoader) -> Any:
    """The dataset of a loader, or the part of it that its sampler draws evenly from."""
    batches: Any = loader.batch_sampler
    sampler: Any = loader.sampler if batches is None else getattr(batches, "sampler", None)
    if isinstance(loader.dataset, data.IterableDataset) or isinstance(sampler, _EVEN):
        return loader.dataset
    if isinstance(sampler, data.SubsetRandomSampler):
        return data.Subset(loader.dataset, list(sampler.indices))
    drawn = type(batches if sampler is None else sampler).__name__
    raise ValueError(
        f"target must be a loader that draws all samples alike, got one with {drawn}: give its dataset, to count the "
        "samples that there are, or the labels that an epoch draws"
    )


def _is_plain(source: Any) -> bool:
    """Whether these are the labels themselves: numbers in a sequence, or a labelled vector such as pandas' Series."""
    if isinstance(source, (list, tuple)):  # whose entries may as well be samples
        return not (source and isinstance(source[0], (tuple, Mapping)))
    return isinstance(source, (Tensor, np.ndarray, range, str, bytes)) or hasattr(source, "__array__")


def _kept_labels(dataset: Any) -> Tensor | None:
    """The class index of every sample where a dataset keeps them in memory as its items have them."""
    if isinstance(dataset, data.TensorDataset):
        return _indices(dataset.tensors[1]) if len(dataset.tensors) > 1 else None
    if _is_plain(dataset) or not hasattr(dataset, "__len__"):
        return None
    names = getattr(dataset, "column_names", None)  # of a table, as in the library datasets
    if isinstance(names, list):
        column = next((name for name in _NAMES if name in names), None)
        return None if column is None else _indices(dataset[column][:])
    # torchvision: a `transforms` that is not made of the two others may change the label, so it takes one pass.
    change = getattr(dataset, "target_transform", None)
    if getattr(dataset, "transforms", None) is not None and change is None and not getattr(dataset, "transform", None):
        return None
    kept = next((getattr(dataset, name) for name in _NAMES[:2] if hasattr(dataset, name)), None)
    if kept is None or not hasattr(kept, "__len__") or len(kept) != len(dataset):
        return None
    if change is None:
        return None if isinstance(next(iter(kept), 0), str) else _indices(kept)  # names are not what the items have
    if getattr(kept, "ndim", 1) > 1:  # a row of a tensor is no number, and only an item says what is changed of it
        return None
    # What is changed is a number, as it is in the items of such a dataset; the entries of a tensor would be tensors.
    return _indices([change(label) for label in (kept.tolist() if hasattr(kept, "tolist") else kept)])


def _one_pass(dataset: Any) -> Iterator[Tensor]:
    """The labels of a dataset's items, each read once, [1, ...]."""
    items: Iterable[Any] = dataset
    if hasattr(dataset, "__len__") and not isinstance(dataset, data.IterableDataset):
        items = (dataset[place] for place in range(len(dataset)))
    return (_indices(_label_of(item)).unsqueeze(0) for item in items)


def _label_of(item: Any) -> Any:
    """The label of one item: the second of a tuple, or what a dictionary has under a usual name."""
    if isinstance(item, Mapping):
        name = next((name for name in _NAMES if name in item), None)
        if name is not None:
            return item[name]
        raise TypeError(f"target must have items with a label ({', '.join(_NAMES)}), got the keys {list(item)}")
    if isinstance(item, (tuple, list)) and len(item) > 1:
        return item[1]
    raise TypeError(f"target must have items (input, label), got {type(item).__name__}")


def _indices(value: Any) -> Tensor:
    """Class indices of any shape as int64."""
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except ValueError as error:  # sequences of several lengths
            raise TypeError(f"target must hold class indices of one shape, got {type(value).__name__}") from error
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"target must hold class indices, got {array.dtype} of {type(value).__name__}")
        value = torch.from_numpy(array.astype(np.int64))
    return checks.indices("target", value, value.shape, value)
