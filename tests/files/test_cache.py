"""What stdlib-words keeps between two runs: damaged, foreign, or where nothing can be kept."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_kernels.data import LongTailedData, load
from lt_kernels.system.files import FileError

WORDS = dict(num_classes=50, max_tokens=20_000, test_per_class=2, context=2, block=20)


def read(folder: Path, **changed) -> LongTailedData:
    return load("stdlib-words", cache_dir=folder, **{**WORDS, **changed})


def same(one: LongTailedData, other: LongTailedData) -> bool:
    tensors = [(one.train[n], other.train[n]) for n in (0, 1)] + [(one.test[n], other.test[n]) for n in (0, 1)]
    return all(torch.equal(*pair) for pair in tensors) and one.class_names == other.class_names


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[LongTailedData, str, bytes]:
    """The data, and the name and content of the file that is kept."""
    folder = tmp_path_factory.mktemp("whole")
    data = read(folder)
    (file,) = folder.iterdir()
    return data, file.name, file.read_bytes()


def pickled() -> bytes:
    """An archive with an array that only a pickle can hold."""
    buffer = io.BytesIO()
    np.savez(buffer, target=np.array([print], dtype=object))
    return buffer.getvalue()


def damaged(content: bytes) -> dict[str, bytes]:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    early = bytearray(content)
    early[100] ^= 16
    return {
        "empty": b"",
        "cut short": content[: len(content) // 2],
        "one byte short": content[:-1],
        "one byte more": content + b"\0",
        "a flipped bit": bytes(flipped),
        "a flipped bit of the head": bytes(early),
        "text": b"no arrays",
        "no head": content[content.index(b"PK") :],
        "the head alone": content[: content.index(b"PK")],
        "another format": content.replace(b"arrays 1", b"arrays 0", 1),
        "a pickle": pickle.dumps([1]),
        "a pickled array": pickled(),
        "an archive that names another folder": zipped("../../outside.npy"),
    }


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", list(damaged(b"\0" * 150 + b"PK" + b"\0" * 50)))
def test_a_damaged_file_is_made_anew(whole, tmp_path, kind):
    data, name, content = whole
    (tmp_path / name).write_bytes(damaged(content)[kind])
    assert same(read(tmp_path), data)
    assert (tmp_path / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_whole_file_is_read_and_not_written(whole, tmp_path):
    data, name, content = whole
    (tmp_path / name).write_bytes(content)
    before = (tmp_path / name).stat()
    assert same(read(tmp_path), data)
    after = (tmp_path / name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_file_of_other_settings_under_this_name_is_made_anew(whole, tmp_path):
    data, name, content = whole
    read(tmp_path, num_classes=40)
    (other,) = tmp_path.iterdir()
    other.rename(tmp_path / name)
    assert same(read(tmp_path), data)
    assert (tmp_path / name).read_bytes() == content


def test_a_link_is_replaced_and_not_followed(whole, tmp_path):
    data, name, _ = whole
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(tmp_path / "mine")
    assert same(read(tmp_path / "cache"), data)
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (tmp_path / "cache" / name).is_symlink()


def test_where_nothing_can_be_kept(whole, tmp_path):
    _, name, _ = whole
    (tmp_path / "file").write_text("a file")
    (tmp_path / "taken" / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    wanted = r"cache_dir must be a folder that can be written to .*, got '.*{}'"
    for place in ("file", "taken", "pipe", "file/below"):
        with pytest.raises(FileError, match=wanted.format(place)):
            read(tmp_path / place)
    for place, error in ((5, TypeError), ("a\0b", ValueError)):
        with pytest.raises(error, match="cache_dir must be a path"):
            read(place)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="to root, every folder can be written to")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match=r"cache_dir must be a folder that can be written to .*Permission denied"):
        read(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"cache_dir must be .*No space left on device"):
        read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _made(folder: Path, connection) -> None:
    connection.send(read(folder).class_names)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 and later
def test_processes_that_make_it_at_once(whole, tmp_path):
    data, name, content = whole
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in range(3)]
    children = [context.Process(target=_made, args=(tmp_path, theirs)) for _, theirs in ends]
    for child in children:
        child.start()
    assert all(ours.poll(120) and ours.recv() == data.class_names for ours, _ in ends)
    for child in children:
        child.join()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


def test_the_folder_where_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for named in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        monkeypatch.chdir(tmp_path)
        load("stdlib-words", **WORDS)
        assert len(list((tmp_path / "home" / ".cache" / "lt_kernels").iterdir())) == 1
    assert not (tmp_path / "relative").exists()


@pytest.mark.parametrize(
    "options, error, text",
    [
        (dict(num_classes="50"), TypeError, "num_classes must be an integer, got '50'"),
        (dict(num_classes=70_000), ValueError, "num_classes must be at most 65533, got 70000"),
        (dict(context=2.5), TypeError, "context must be an integer, got 2.5"),
        (dict(block=None), TypeError, "block must be an integer, got None"),
        (dict(test_per_class=True), TypeError, "test_per_class must be an integer, got True"),
        (dict(max_tokens=-1), ValueError, "max_tokens must be at least 1, got -1"),
        (dict(imbalance=10), ValueError, "imbalance must be None for stdlib-words"),
    ],
)
def test_options_of_words(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        read(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, error, text",
    [
        (dict(imbalance="100"), TypeError, "imbalance must be a number, got '100'"),
        (dict(imbalance=float("nan")), ValueError, "imbalance must be finite"),
        (dict(imbalance=float("inf")), ValueError, "imbalance must be finite"),
        (dict(imbalance=0.5), ValueError, "imbalance must be at least 1"),
        (dict(test_per_class="5"), TypeError, "test_per_class must be an integer, got '5'"),
        (dict(test_per_class=0), ValueError, "test_per_class must be at least 1, got 0"),
        (dict(test_per_class=174), ValueError, r"test_per_class must be in 1\.\.173, got 174"),
        (dict(seed=1.5), TypeError, "seed must be an integer, got 1.5"),
        (dict(nothing=1), TypeError, "nothing"),
    ],
)
@pytest.mark.parametrize("name", ["digits-lt", "digit-scenes"])
def test_options_of_digits(name, options, error, text):
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the scans, is not installed")
    with pytest.raises(error, match=text):
        load(name, **options)


def test_numbers_of_numpy_are_numbers():
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the scans, is not installed")
    plain = load("digits-lt", 10.0, 3, test_per_class=20)
    assert same(plain, load("digits-lt", np.float32(10), np.int64(3), test_per_class=np.int32(20)))  # type: ignore[arg-type]


def test_targets_of_another_type_are_named():
    images, target = torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 1.0])
    with pytest.raises(TypeError, match=r"train targets must be int64, got torch\.float32"):
        LongTailedData("a", (images, target), (images, target), torch.ones(2).long(), 2, "image", ("a", "b"))
