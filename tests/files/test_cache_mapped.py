"""Bytes that are made part by part into a file which is then mapped into memory: whole, once, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lt_kernels.data.cache import mapped
from lt_kernels.system.files import FileError

NUMBERS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def parts(made: list[int]) -> Iterator[bytes]:
    for number, part in enumerate(NUMBERS):
        made.append(number)
        yield part.tobytes()


@pytest.mark.parametrize("left", [None, b"", b"half", b"\0" * 25])
def test_made_once_and_again_where_it_is_not_whole(tmp_path: Path, left: bytes | None):
    made: list[int] = []
    if left is not None:
        (tmp_path / "numbers").write_bytes(left)
    for _ in range(2):
        found = mapped(tmp_path / "numbers", (4, 2, 3), parts(made))
        assert np.array_equal(found, NUMBERS)
    assert made == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]
    found[0] = 9  # what is mapped is the reader's own
    assert np.array_equal(mapped(tmp_path / "numbers", (4, 2, 3), parts(made)), NUMBERS)


def test_what_fails_half_way_leaves_nothing(tmp_path: Path):
    def failing() -> Iterator[bytes]:
        yield from parts([])
        raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match="no ink"):
        mapped(tmp_path / "numbers", (4, 2, 3), failing())
    assert list(tmp_path.iterdir()) == []


def test_who_wants_it_meanwhile_waits(tmp_path: Path):
    """The second one begins when the first has written half of it, and makes nothing."""
    made: list[int] = []
    begun, joined, found = threading.Event(), threading.Event(), []

    def slow() -> Iterator[bytes]:
        for part in parts(made):
            yield part
            begun.set()
            assert joined.wait(60)
            second.join(0.05)  # it would be done by now if it did not wait

    second = threading.Thread(target=lambda: found.append(mapped(tmp_path / "numbers", (4, 2, 3), parts(made))))
    first = threading.Thread(target=lambda: mapped(tmp_path / "numbers", (4, 2, 3), slow()))
    first.start()
    assert begun.wait(60)
    second.start()
    joined.set()
    first.join()
    second.join()
    assert np.array_equal(found[0], NUMBERS)
    assert made == [0, 1, 2, 3]


def test_half_written_files_of_others_are_left_alone(tmp_path: Path):
    for name in (".numbers.0123456789abcdef.tmp", ".letters.0123456789abcdef.tmp", ".numbers.tmp"):
        (tmp_path / name).write_bytes(b"x")
    mapped(tmp_path / "numbers", (4, 2, 3), parts([]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".letters.0123456789abcdef.tmp",
        ".numbers.tmp",
        "numbers",
    ]


def test_a_folder_that_cannot_be_is_named_before_anything_is_made(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    made: list[int] = []
    with pytest.raises(FileError, match="cache_dir must be a folder that can be written to"):
        mapped(tmp_path / "file" / "numbers", (4, 2, 3), parts(made))
    assert made == []
