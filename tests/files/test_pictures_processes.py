"""A list of pictures in the processes of a data loader: what the parent read before does not matter."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lt_kernels.data import ResumableLoader
from lt_kernels.data.images import ImageList

pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")
LEVELS = [0, 10, 20, 30, 40, 50]
SECONDS = 60  # a process that hangs is ended then

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # Python 3.12 and later
]


@pytest.fixture
def pictures(tmp_path: Path) -> ImageList:
    for level in LEVELS:
        pillow.new("L", (8, 8), level).save(tmp_path / f"{level}.png")
    return ImageList([f"{level}.png" for level in LEVELS], tmp_path, 8, 8, threads=1)


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def in_child(work) -> list[int]:
    """What `work` returns in a forked process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(work()))
    child.start()
    found = ours.recv() if ours.poll(SECONDS) else ["hangs"]
    child.kill()
    child.join()
    return found


def test_rows_after_a_fork(pictures):
    assert levels(pictures.index_select(0, torch.tensor([1]))) == [10]
    assert in_child(lambda: levels(pictures.index_select(0, torch.tensor([2, 3])))) == [20, 30]
    assert levels(pictures.index_select(0, torch.tensor([5]))) == [50]


def test_rows_that_the_parent_began_to_read(pictures):
    rows = torch.tensor([4, 0])
    pictures.prefetch(rows)
    assert in_child(lambda: levels(pictures.index_select(0, rows))) == [40, 0]
    assert levels(pictures.index_select(0, rows)) == [40, 0]


def test_a_split_that_goes_on_in_a_fork(pictures):
    parts = pictures.split(2)
    assert levels(next(parts)) == [0, 10]
    assert in_child(lambda: levels(torch.cat(list(parts)))) == [20, 30, 40, 50]
    assert levels(torch.cat(list(parts))) == [20, 30, 40, 50]


def test_a_loader_that_goes_on_in_a_fork(pictures):
    batches = iter(ResumableLoader((pictures, torch.arange(6)), 2, shuffle=False))  # type: ignore[arg-type]
    assert levels(next(batches)[0]) == [0, 10]
    assert in_child(lambda: [level for images, _ in batches for level in levels(images)]) == [20, 30, 40, 50]


def test_forks_of_forks_and_a_fork_before_the_first_picture(pictures):
    assert in_child(lambda: levels(pictures.index_select(0, torch.tensor([1])))) == [10]

    def again() -> list[int]:
        pictures.prefetch(torch.tensor([2]))
        return in_child(lambda: levels(pictures.index_select(0, torch.tensor([2])))) + levels(
            pictures.index_select(0, torch.tensor([2]))
        )

    assert in_child(again) == [20, 20]


def test_a_copy_of_a_list_in_use(pictures):
    pictures.prefetch(torch.tensor([3]))
    assert levels(pickle.loads(pickle.dumps(pictures)).index_select(0, torch.tensor([3]))) == [30]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow),
                                   pytest.param("forkserver", marks=pytest.mark.slow)])  # fmt: skip
def test_workers_that_stay_over_the_epochs(pictures, start):
    pictures.index_select(0, torch.tensor([0]))
    pictures.prefetch(torch.arange(6))
    options = dict(num_workers=2, multiprocessing_context=start, persistent_workers=True, timeout=SECONDS)
    loader = DataLoader(pictures, batch_size=4, **options)  # type: ignore[arg-type]
    for _ in range(3):
        assert [levels(images) for images in loader] == [LEVELS[:4], LEVELS[4:]]
