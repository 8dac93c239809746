"""Large new arrays ask for large pages, whole ones within themselves, before they are written to."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from helpers import classes_of, normal
from torch import Tensor

from lt_kernels import memory_budget
from lt_kernels.functional import (
    lade_regularizer,
    linear_cross_entropy,
    logit_weight_repulsion,
    offset_cross_entropy,
)
from lt_kernels.ops.backends import library

PAGE = 2 * 2**20
MAPS = Path("/proc/self/smaps")
pytestmark = [
    pytest.mark.skipif(not library.built(), reason="the C++ extension, which asks, is not built"),
    pytest.mark.skipif(not MAPS.exists(), reason="the system does not tell how memory is mapped"),
    pytest.mark.skipif(
        not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no transparent huge pages"
    ),
]


def asked(address: int) -> bool:
    """Whether somebody asked for large pages where an address lies."""
    inside = False
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(end, 16) for end in head.split("-"))
            inside = first <= address < last
        elif inside and head == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError(f"no mapping holds {address:#x}")


def whole_page(tensor: Tensor) -> int:
    """The address of the first large page that lies within a tensor."""
    return -(-tensor.data_ptr() // PAGE) * PAGE


def new_bytes() -> Tensor:
    """64 MiB that nobody had before and nobody asked for: torch's own may come from memory that was used."""
    return torch.frombuffer(mmap.mmap(-1, 64 * 2**20 + 64), dtype=torch.int8, offset=64)


def test_pages_within_the_array_alone() -> None:
    made = new_bytes()
    assert library.large_pages(made) is made
    assert asked(whole_page(made))
    assert not asked(made.data_ptr())  # within a large page that holds something else too


def test_small_arrays_do_not_ask() -> None:
    made = new_bytes()
    assert library.large_pages(made[: 2**22]).nbytes == 2**22
    assert not asked(whole_page(made))


@pytest.mark.parametrize("way", ["short", "operators"])
def test_gradients_of_logits(way: str) -> None:
    rows, classes = 64, 2**18
    logits, target = (
        normal(rows, classes, seed=951, dtype=torch.float32).requires_grad_(),
        classes_of(rows, classes, 952),
    )
    smoothing = 0.0 if way == "short" else 0.1
    (made,) = torch.autograd.grad(offset_cross_entropy(logits, target, label_smoothing=smoothing), logits)
    assert made.nbytes == 64 * 2**20
    assert asked(whole_page(made))


def test_gradient_of_lade() -> None:
    rows, classes = 64, 2**18
    logits, target = (
        normal(rows, classes, seed=953, dtype=torch.float32).requires_grad_(),
        classes_of(rows, classes, 954),
    )
    (made,) = torch.autograd.grad(lade_regularizer(logits, target, torch.ones(classes)), logits)
    assert asked(whole_page(made))


def test_gradient_of_class_weights() -> None:
    """Of a product in one piece; one that is filled slab by slab finds its small pages in the cache, just made."""
    rows, classes, size = 8, 2**16, 256
    input, weight = (normal(many, size, seed=955 + many, dtype=torch.float32) for many in (rows, classes))
    leaves = [input.requires_grad_(), weight.requires_grad_()]
    with memory_budget(2**28):
        _, made = torch.autograd.grad(linear_cross_entropy(*leaves, classes_of(rows, classes, 957)), leaves)
    assert made.nbytes == 64 * 2**20
    assert asked(whole_page(made))


def test_gradient_of_repulsion() -> None:
    weight = normal(2**12, 2**12, seed=958, dtype=torch.float32).requires_grad_()
    (made,) = torch.autograd.grad(logit_weight_repulsion(weight), weight)
    assert made.nbytes == 64 * 2**20
    assert asked(whole_page(made))
