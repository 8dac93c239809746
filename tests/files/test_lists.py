"""Lists of pictures as editors and other systems write them, and lines that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lt_kernels.data import load
from lt_kernels.data.lists import read_list
from lt_kernels.system.files import FileError, read_text

pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")


def listed(path: Path, content: bytes) -> list[tuple[str, int]]:
    path.write_bytes(content)
    found = read_list(path)
    return list(zip(found.files, found.labels))


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"\xef\xbb\xbfa.png 0\nb.png 1\n", [("a.png", 0), ("b.png", 1)]),
        (b"a.png 0\r\nb.png 1\r\n", [("a.png", 0), ("b.png", 1)]),
        (b"a.png 0\rb.png 1", [("a.png", 0), ("b.png", 1)]),
        (b"a.png\t0\nb.png  \t 1 \t\n", [("a.png", 0), ("b.png", 1)]),
        (b"  /a/b c.png 0\n\n \t\n//d.png 007\n", [("a/b c.png", 0), ("d.png", 7)]),
        (b"a.png 0\na.png 0\na.png 1\n", [("a.png", 0), ("a.png", 0), ("a.png", 1)]),
        ("é\u2028\x85\u3000.png 3\n".encode(), [("é\u2028\x85\u3000.png", 3)]),
        ("\ufeff\ufeff.png 1".encode(), [("\ufeff.png", 1)]),  # the mark is taken off once
        (b"a.png 2147483646", [("a.png", 2147483646)]),
    ],
)
def test_lines_of_every_editor(tmp_path, content, expected):
    assert listed(tmp_path / "list.txt", content) == expected


@pytest.mark.parametrize(
    "label", ["²", "٣", "\uff11", "-1", "+1", "1.0", "1e3", "1_0", "x", "", "0x1", "1 ,", "10000000000000000000000000",
              "2147483647", "9" * 5000], ids=ascii
)  # fmt: skip
def test_labels_that_are_none(tmp_path, label):
    (tmp_path / "list.txt").write_text(f"a.png 0\n\nb.png {label[:5000]}\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"the list '.*list\.txt' must have .*in line 3") as raised:
        read_list(tmp_path / "list.txt")
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "must name an image, got none"),
        (b"\xef\xbb\xbf\r\n", "must name an image, got none"),
        (b"a.png 0\n5\n", "in line 2"),
        (b"a.png 0\n / 5\n", "in line 2"),
        (b"a.png 0\nb\xff.png 1\n", "must be UTF-8, line 2 is not"),
        ("a.png 0\n".encode("utf-16"), "must be UTF-8, it begins as UTF-16"),
        (b"a.png 0\nb\0.png 1\n", "line 2 holds a zero byte"),
        (b"a" * 10**6 + b" " * 10**6 + b"x", "in line 1"),
    ],
)
def test_files_that_are_no_lists(tmp_path, content, text):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(FileError, match=rf"the list '.*list\.txt' .*{text}"):
        read_list(tmp_path / "list.txt")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in [("pipe", "no regular file"), (".", "no regular file"), ("loop", "symbolic links"),
                         ("gone\n", "No such file")]:  # fmt: skip
        with pytest.raises(FileError, match=f"the list .* .*{reason}"):
            read_text(tmp_path / name, "list")


NOTES = {"images": [{"id": 7, "file_name": "/a.png"}], "annotations": [{"image_id": 7, "category_id": 0}]}


def test_json_with_a_byte_order_mark(tmp_path):
    assert listed(tmp_path / "list.json", b"\xef\xbb\xbf" + json.dumps(NOTES).encode()) == [("a.png", 0)]


@pytest.mark.parametrize(
    "changed, text",
    [
        ([], "must hold `images` and `annotations`"),
        ({"images": 5}, "images is not there"),
        ({"annotations": {}}, "annotations is not there"),
        ({"images": []}, r"no image of id 7, which annotations\[0\] names"),
        ({"images": [3]}, r"an integer `id` in images\[0\], got None"),
        ({"images": [{"id": 7, "file_name": 3}]}, r"a path as `file_name` in images\[0\], got 3"),
        ({"images": [{"id": 7, "file_name": "a\0"}]}, r"a path as `file_name` in images\[0\]"),
        ({"images": NOTES["images"] * 2}, "an id of its own"),
        ({"annotations": [{"image_id": [], "category_id": 0}]}, r"`image_id` in annotations\[0\], got \[\]"),
        ({"annotations": [{"image_id": 7, "category_id": "²"}]}, r"`category_id` in annotations\[0\], got '²'"),
        ({"annotations": [{"image_id": 7, "category_id": 1.5}]}, r"`category_id` in annotations\[0\], got 1.5"),
        ({"annotations": [{"image_id": 7, "category_id": True}]}, r"`category_id` in annotations\[0\], got True"),
        ({"annotations": [{"image_id": 7, "category_id": -1}]}, r"labels in 0\.\..*, got -1 in annotations\[0\]"),
        ({"annotations": [{"image_id": 7, "category_id": 10**25}]}, r"labels in 0\.\..*, got 10+ in annotations\[0\]"),
        ({"annotations": []}, "must name an image, got none"),
    ],
)
def test_json_that_is_no_list(tmp_path, changed, text):
    content = changed if isinstance(changed, list) else {**NOTES, **changed}
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(FileError, match=rf"the list '.*list\.json' .*{text}"):
        read_list(tmp_path / "list.json")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"images": 1' + "0" * 5000 + "}", "NaN", ""])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(FileError, match=r"the list '.*list\.json' must hold `images` and `annotations`"):
        read_list(tmp_path / "list.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pillow.new("L", (8, 8), 9).save(tmp_path / "a.png")
    for name in ("t.txt", "v.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfa.png 0\r\na.png 1\r\n")
    return tmp_path


def read(folder: Path, **changed):
    options = dict(root=folder, train_list="t.txt", test_list="v.txt", num_classes=2, resize=8, train_crop=8, crop=8)
    return load("places-lt", **{**options, **changed})


def test_a_data_set_with_byte_order_marks(folder):
    data = read(folder)
    assert data.train[0].files == ["a.png", "a.png"]
    assert int(data.train[0][1][0, 0, 0]) == 9


def test_a_label_above_the_classes_is_named_with_its_line(folder):
    (folder / "v.txt").write_text("a.png 0\na.png 1\na.png 10\na.png 10\n")
    text = r"num_classes must be above the largest label 10, got 2; it is in line 3 of the list '.*v\.txt'"
    with pytest.raises(FileError, match=text):
        read(folder)


@pytest.mark.parametrize(
    "options, error, text",
    [
        (dict(root=5), TypeError, "root must be a path, got 5"),
        (dict(root="a\0b"), ValueError, "root must be a path without zero bytes"),
        (dict(train_list=3), TypeError, "train_list must be a path, got 3"),
        (dict(lists=[]), TypeError, r"lists must be a path, got \[\]"),
        (dict(num_classes="2"), TypeError, "num_classes must be an integer, got '2'"),
        (dict(crop=2.0), TypeError, "crop must be an integer, got 2.0"),
        (dict(threads=-1), ValueError, "threads must be at least 0, got -1"),
        (dict(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (dict(seed="1"), TypeError, "seed must be an integer, got '1'"),
    ],
)
def test_options_are_named(folder, options, error, text):
    with pytest.raises(error, match=text):
        read(folder, **options)
