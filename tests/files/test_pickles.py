"""The CIFAR archives' pickles: what they hold is read, and whatever else a pickle can ask for is refused."""

from __future__ import annotations

import collections
import fractions
import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lt_kernels.data import load
from lt_kernels.data.cifar import read_batch
from lt_kernels.system.files import FileError

BYTES = np.arange(6, dtype=np.uint8).reshape(2, 3)


class Calls:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def read(path: Path, content: bytes) -> dict:
    path.write_bytes(content)
    return read_batch(path)


@pytest.mark.parametrize("protocol", range(5))
def test_containers_numbers_and_arrays_of_bytes(tmp_path, protocol):
    stored = {
        b"data": BYTES,
        "columns": np.asfortranarray(BYTES),
        b"labels": [0, 1, 255, 256, 70_000, -1, 2**31, 10**25, -(10**25)],
        "text": ("é", b"\xff", 1.5, None, True, False, (), [], {}),
        "again": [BYTES[0].tolist()] * 3,
    }
    found = read(tmp_path / "batch", pickle.dumps(stored, protocol))
    assert list(found) == ["data", "columns", "labels", "text", "again"]
    assert all(np.array_equal(found[name], BYTES) and found[name].dtype == np.uint8 for name in ("data", "columns"))
    assert found["labels"] == stored[b"labels"]
    assert found["text"] == stored["text"]
    assert found["again"] == stored["again"]


OBJECTS = np.array([1, "a", None], dtype=object)
HOSTILE = {
    "os.system": Calls(os.system, "echo harm"),
    "builtins.eval": Calls(eval, "1 + 1"),
    "builtins.exec": Calls(exec, "raise SystemExit"),
    "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
    "import": Calls(__import__, "os"),
    "open": Calls(open, "/dev/null"),
    "print": print,
    "a class": collections.OrderedDict,
    "an ordered dict": collections.OrderedDict(a=1),
    "a set": {1, 2},
    "a frozenset": frozenset([1]),
    "a complex number": 1j,
    "a fraction": fractions.Fraction(1, 3),
    "a path": Path("a"),
    "an array of objects": OBJECTS,
    "an array of int64": np.arange(3),
    "an array of float32": np.zeros(2, np.float32),
    "an array of int8": np.zeros(2, np.int8),
    "an array of bytes strings": np.array([b"a"]),
    "a structured array": np.zeros(2, [("a", "u1")]),
    "a numpy number": np.uint8(3),
    "a dtype of objects": np.dtype(object),
    "numpy's load": Calls(np.load, "a.npy"),
    "numpy's fromfile": Calls(np.fromfile, "/dev/zero"),
    "an array of many": Calls(np.zeros, 2**40),
    "a codec": Calls(__import__("_codecs").encode, "a" * 100, "punycode"),
    "a bytearray": bytearray(b"a"),
    "a chain": Calls(Calls, Calls(os.system, "echo harm")),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(tmp_path, monkeypatch, name, protocol):
    monkeypatch.setattr(os, "system", lambda text: pytest.fail("code was run"))
    harm = HOSTILE[name] if name != "os.system" else Calls(os.system, "echo harm")
    for stored in ({b"data": harm}, {"data": [1, (harm,)]}, harm):
        try:
            content = pickle.dumps(stored, protocol)
        except (pickle.PicklingError, TypeError, AttributeError):  # Python itself cannot store it in this way
            continue
        text = r"batch' is not a file of the CIFAR archive's python version: it (asks for|holds|has|sets|is no) "
        with pytest.raises(FileError, match=text):
            read(tmp_path / "batch", content)


def short(name: bytes) -> bytes:
    return b"\x8c" + bytes([len(name)]) + name


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"


def state(shape: bytes, dtype: bytes = DTYPE, raw: bytes = b"U\x01a") -> bytes:
    """A dict with an array of this state."""
    return b"\x80\x02}U\x04data" + ARRAY + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tbs."


RAW = {
    "os.system by text": b"(S'echo harm'\nios\nsystem\n.",
    "os.system by stack": b"\x80\x04" + short(b"os") + short(b"system") + b"\x93" + short(b"ls") + b"\x85R.",
    "a name that is no text": b"\x80\x04]]\x93.",
    "an attribute of ours": b"\x80\x04cnumpy\nndarray\n}U\x04nameU\x01xsb.",
    "slots of ours": b"\x80\x04cnumpy\nndarray\nN}U\x0c__defaults__K\x01\x85s\x86b.",
    "numpy's own os": b"cnumpy.compat.py3k\nos\n.",
    "a dotted name": b"\x80\x04" + short(b"numpy") + short(b"dtype.__class__") + b"\x93.",
    "a new object": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "a persistent id": b"P1\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "more bytes than there are": b"\x80\x02}U\x04data" + b"\x8e" + struct.pack("<Q", 2**60) + b"abcs.",
    "text longer than the file": b"\x80\x02X" + struct.pack("<I", 2**31) + b"abc.",
    "a number longer than the file": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "a number of negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "digits without end": b"I" + b"9" * 10_000 + b"\n.",
    "an object that nobody put": b"\x80\x02}j" + struct.pack("<I", 2**32 - 1) + b".",
    "nothing to take": b"\x80\x02R.",
    "no mark": b"\x80\x02t.",
    "two objects": b"\x80\x02}}.",
    "no end": b"\x80\x02}",
    "an unknown protocol": b"\x80\xff}.",
    "no dict": b"\x80\x02].",
    "an array as a key": b"\x80\x02}]K\x01s.",
    "half a pair": b"\x80\x02}(K\x01u.",
    "an array without a state": b"\x80\x02}U\x04data" + ARRAY + b"s.",
    "a shape of negative sizes": state(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"),
    "a shape above its bytes": state(b"M\xff\xff\x85"),
    "a shape of text": state(b"U\x01a\x85"),
    "a list in place of the bytes": state(b"K\x01\x85", raw=b"](K\x01e"),
    "no type": state(b"K\x01\x85", dtype=b"N"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_instructions_that_no_writer_makes(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "system", lambda text: pytest.fail("code was run"))
    with pytest.raises(FileError, match="is not a file of the CIFAR archive's python version: "):
        read(tmp_path / "batch", RAW[name])


def test_a_place_in_the_memo_costs_nothing(tmp_path):
    """Python's own unpickler makes room for four thousand million objects here."""
    tracemalloc.start()
    assert read(tmp_path / "batch", b"\x80\x02}r" + struct.pack("<I", 2**32 - 2) + b".") == {}
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_lists_within_lists_and_lists_of_one_list(tmp_path):
    deep = b"\x80\x02}U\x04data" + b"(" * 200_000 + b"l" * 200_000 + b"s."
    assert list(read(tmp_path / "deep", deep)) == ["data"]
    doubled: list = [0]
    for _ in range(60):
        doubled = [doubled, doubled]
    started = time.perf_counter()
    assert list(read(tmp_path / "doubled", pickle.dumps({"data": doubled}))) == ["data"]
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_read_or_named(tmp_path, seed):
    random = np.random.default_rng(seed)
    whole = np.frombuffer(pickle.dumps({b"data": BYTES, b"labels": [1, 2]}, [0, 2, 4][seed]), np.uint8)
    for case in range(400):
        changed = whole.copy()
        changed[random.integers(0, len(whole), 3)] = random.integers(0, 256, 3)
        content = changed[: random.integers(len(whole))] if case % 4 == 0 else changed
        assert read_or_named(tmp_path / "batch", content.tobytes())


def read_or_named(path: Path, content: bytes) -> bool:
    try:
        return isinstance(read(path, content), dict)
    except FileError as error:
        return "batch' is not a file of the CIFAR archive's python version" in str(error)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [("pipe", "no regular file"), (".", "no regular file"), ("gone", "No such file")]:
        with pytest.raises(FileError, match=f"is not a file of the CIFAR archive's python version: .*{reason}"):
            read_batch(tmp_path / name)


def write_archive(folder: Path, **changed) -> Path:
    """The files of CIFAR-100 with an image of each class, and one key of `train` or `meta` changed."""
    folder.mkdir(exist_ok=True)
    data = {"data": np.zeros((100, 3072), np.uint8), "fine_labels": list(range(100))}
    meta = {"fine_label_names": [b"class \xff"] * 100}
    for name, stored in (("train", data), ("test", data), ("meta", meta)):
        own = {key: value for key, value in changed.items() if key in stored and name != "test"}
        (folder / name).write_bytes(pickle.dumps({**stored, **own}))
    return folder


@pytest.mark.parametrize(
    "changed, text",
    [
        (dict(data=np.zeros((100, 3071), np.uint8)), r"train' must hold `data` uint8 \[N, 3072\] and a list"),
        (dict(data=[]), r"train' must hold `data` uint8 \[N, 3072\]"),
        (dict(data=np.zeros(3072, np.uint8)), r"train' must hold `data` uint8 \[N, 3072\]"),
        (dict(fine_labels=[0] * 99), "train' must have as many `fine_labels` as images, got 99 and 100"),
        (dict(fine_labels=[0] * 50 + [100] * 50), r"train' must have `fine_labels` in 0\.\.99, got 100 at 50"),
        (dict(fine_labels=[-1] * 100), r"train' must have `fine_labels` in 0\.\.99, got -1 at 0"),
        (dict(fine_labels=[10**25] * 100), r"train' must have `fine_labels` in 0\.\.99, got 10+ at 0"),
        (dict(fine_labels=["²"] * 100), r"train' must have `fine_labels` in 0\.\.99, got a str at 0"),
        (dict(fine_labels=[True] * 100), r"train' must have `fine_labels` in 0\.\.99, got a bool at 0"),
        (dict(fine_label_names=[b"a"] * 99), "meta' must hold a list `fine_label_names` of 100 names"),
        (dict(fine_label_names=[3] * 100), "meta' must hold a list `fine_label_names` of 100 names"),
    ],
)
def test_an_archive_that_does_not_fit_is_named(tmp_path, changed, text):
    with pytest.raises(FileError, match=text):
        load("cifar100-lt", root=write_archive(tmp_path / "cifar-100-python", **changed))


def test_nothing_of_pickle_is_used(tmp_path, monkeypatch):
    content = pickle.dumps({b"data": BYTES})
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    assert "data" in read(tmp_path / "batch", content)
