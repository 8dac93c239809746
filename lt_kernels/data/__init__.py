"""Imbalance profiles, data sets, samplers and a loader that resumes at the exact batch."""

from lt_kernels.data import cifar, cityscapes, digits, folders, hanzi, idx, images, scenes, words
from lt_kernels.data.base import READERS, LongTailedData, load
from lt_kernels.data.loader import DealtLoader, ResumableLoader
from lt_kernels.data.own import dataset, folder, hugging
from lt_kernels.data.validation import validation_split

__all__ = [
    "READERS",
    "DealtLoader",
    "LongTailedData",
    "ResumableLoader",
    "cifar",
    "cityscapes",
    "dataset",
    "digits",
    "folder",
    "folders",
    "hanzi",
    "hugging",
    "idx",
    "images",
    "load",
    "scenes",
    "validation_split",
    "words",
]
