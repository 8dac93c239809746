"""Photographs: the CIFAR archives' files, lists of files, pictures read when asked for, and what is missing."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_kernels.data import READERS, ResumableLoader, load
from lt_kernels.data.cifar import ARCHIVES, read_batch
from lt_kernels.data.images import ImageList, decode

ROOT = Path(__file__).resolve().parents[2]
NAMES = [b"plane", b"car", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"lorry"]


def image(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(array).save(path)


def write_cifar(folder: Path, classes: int, per_class: int, protocol: int = 4) -> None:
    """Files as the archive's, with `per_class` training images and two test images of each class; pixel 0 tells the
    class, pixels 1 and 2 the image.
    """
    hundred = classes == 100
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    target = random.permutation(np.repeat(np.arange(classes), per_class))
    pixels = np.zeros((len(target), 3072), np.uint8)
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = target, np.arange(len(target)) % 256, np.arange(len(target)) // 256
    labels, count = (b"fine_labels", 1) if hundred else (b"labels", 5)
    names = ["train"] if hundred else [f"data_batch_{number + 1}" for number in range(5)]
    for name, rows in zip(names, np.array_split(np.arange(len(target)), count)):
        (folder / name).write_bytes(pickle.dumps({b"data": pixels[rows], labels: target[rows].tolist()}, protocol))
    test = np.repeat(np.arange(classes), 2)
    stored = {b"data": np.zeros((len(test), 3072), np.uint8), labels: test.tolist(), b"batch_label": b"testing"}
    (folder / ("test" if hundred else "test_batch")).write_bytes(pickle.dumps(stored, protocol))
    called = [b"class %d" % index for index in range(classes)] if hundred else NAMES
    meta = {b"fine_label_names" if hundred else b"label_names": called}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(meta, protocol))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_way_of_storing_arrays_is_read(tmp_path, protocol):
    write_cifar(tmp_path / "a", 10, 10, protocol)
    stored = read_batch(tmp_path / "a" / "data_batch_3")
    assert stored["data"].shape == (20, 3072)
    assert stored["data"][:, 0].tolist() == stored["labels"]


def test_a_batch_as_python_2_stored_it(tmp_path):
    """The archives' own form: byte strings where Python 3 has text, and numpy's names of that time."""
    pixels = (np.arange(2 * 3072) % 251).astype(np.uint8)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86"
    array += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
    array += struct.pack("<i", len(pixels)) + pixels.tobytes() + b"tb"
    (tmp_path / "batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x01K\x02eu.")
    stored = read_batch(tmp_path / "batch")
    assert np.array_equal(stored["data"], pixels.reshape(2, 3072))
    assert stored["labels"] == [1, 2]


def test_cifar_batches(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", 10, 5000)
    data = load("cifar10-lt", root=tmp_path)
    assert data.class_counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert data.train[0].shape == (12406, 3, 32, 32)
    assert data.train[0].dtype == torch.uint8
    assert torch.equal(data.train[0][:, 0, 0, 0].long(), data.train[1])
    assert data.test[1].bincount().tolist() == [2] * 10
    assert data.class_names[:2] == ("plane", "car")
    assert (data.pixel_mean, data.pixel_deviation) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_which_samples_are_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHIVES, "cifar10-lt", ARCHIVES["cifar10-lt"]._replace(per_class=60))
    write_cifar(tmp_path / "cifar-10-batches-py", 10, 60)
    inside = load("cifar10-lt", imbalance=10, root=tmp_path / "cifar-10-batches-py", seed=1)
    assert (int(inside.class_counts[0]), int(inside.class_counts[-1])) == (60, 6)
    settings = [(1, "first"), (2, "first"), (1, "drawn"), (2, "drawn"), (2, "drawn")]
    kept = [load("cifar10-lt", 10, seed, root=str(tmp_path), samples=samples).train[0] for seed, samples in settings]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[3], kept[4])
    assert not torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[2], kept[3])


def test_the_first_samples_of_each_class_are_kept_in_their_order(tmp_path):
    write_cifar(tmp_path / "cifar-100-python", 100, 500)
    data = load("cifar100-lt", imbalance=50, root=tmp_path, samples="first")
    assert len(data.train[1]) == 12608
    assert (int(data.class_counts[0]), int(data.class_counts[-1])) == (500, 10)
    stored = read_batch(tmp_path / "cifar-100-python" / "train")
    target = np.array(stored["fine_labels"])
    rows = np.sort(np.concatenate([np.flatnonzero(target == c)[:n] for c, n in enumerate(data.class_counts.tolist())]))
    assert np.array_equal(data.train[0].numpy().reshape(-1, 3072), stored["data"][rows])
    assert np.array_equal(data.train[1].numpy(), target[rows])
    assert data.class_names[7] == "class 7"


def test_a_pickle_that_could_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    for content in (pickle.dumps({b"data": Harm()}), b"no pickle", pickle.dumps([1]), b""):
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(ValueError, match=r"data_batch_1' is not a file of the CIFAR archive's python version"):
            read_batch(tmp_path / "data_batch_1")


def test_missing_files_of_the_archive_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"root must name the folder .* cifar-100-python.*got None"):
        load("cifar100-lt")
    with pytest.raises(ValueError, match=r"root must hold .*cifar-100-python.* lacks train, test, meta"):
        load("cifar100-lt", root=tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-py", 10, 10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py' lacks data_batch_4$"):
        load("cifar10-lt", root=tmp_path)
    with pytest.raises(ValueError, match=r"samples must be one of 'drawn', 'first', got 'last'"):
        load("cifar10-lt", root=tmp_path, samples="last")


def test_decoding_is_scaling_and_cutting(tmp_path):
    pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")
    for width, height, scaled, left, top in [(50, 37, (43, 32), 10, 4), (37, 50, (32, 43), 4, 10),
                                             (32, 32, (32, 32), 4, 4)]:  # fmt: skip
        array = image(width, height)
        save(tmp_path / "a.png", array)
        whole = np.array(pillow.fromarray(array).resize(scaled, pillow.Resampling.BILINEAR))
        expected = whole[top : top + 24, left : left + 24].transpose(2, 0, 1)
        found = decode(tmp_path / "a.png", 32, 24)
        assert found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), expected)


def test_pictures_of_every_mode_become_rgb(tmp_path):
    grey = image(8, 8)[..., 0]
    save(tmp_path / "grey.png", grey)
    found = decode(tmp_path / "grey.png", 8, 8)
    assert torch.equal(found, torch.from_numpy(grey).expand(3, 8, 8))


@pytest.fixture
def pictures(tmp_path: Path) -> ImageList:
    for index in range(7):
        save(tmp_path / "some" / f"{index}.png", image(20, 18, seed=index))
    return ImageList([f"some/{index}.png" for index in range(7)], tmp_path, 18, 16, threads=2)


def test_an_image_list_is_used_like_a_tensor(pictures):
    assert pictures.shape == (7, 3, 16, 16)
    assert (len(pictures), pictures.device, pictures.dtype) == (7, torch.device("cpu"), torch.uint8)
    whole = torch.stack([decode(pictures.root / file, 18, 16) for file in pictures.files])
    assert torch.equal(pictures.index_select(0, torch.tensor([5, 0, 5])), whole[[5, 0, 5]])
    for size in (1, 3, 7, 100):
        parts = list(pictures.split(size))
        assert [len(part) for part in parts] == [len(part) for part in whole.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    again = pickle.loads(pickle.dumps(pictures))
    assert torch.equal(again.index_select(0, torch.tensor([2])), whole[2:3])
    with pytest.raises(ValueError, match="dim must be 0, got 1"):
        pictures.index_select(1, torch.tensor([0]))


def test_a_loader_takes_an_image_list(pictures):
    whole = torch.cat(list(pictures.split(7)))
    target = torch.arange(7)
    batches = list(ResumableLoader((pictures, target), 3, seed=2))  # type: ignore[arg-type]
    assert [len(inputs) for inputs, _ in batches] == [3, 3, 1]
    for inputs, rows in batches:
        assert torch.equal(inputs, whole[rows])


def test_a_picture_that_cannot_be_read_is_named(pictures):
    (pictures.root / "some" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"the image '.*some/3\.png' cannot be read as a picture"):
        pictures.index_select(0, torch.tensor([1, 3]))
    whole = (pictures.root / "some" / "4.png").read_bytes()
    (pictures.root / "some" / "4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"4\.png' cannot be read as a picture"):
        pictures.index_select(0, torch.tensor([4]))
    (pictures.root / "some" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png' is missing"):
        list(pictures.split(2))


@pytest.mark.parametrize("options, text", [(dict(crop=20), "crop must be at most resize = 18, got 20"),
                                           (dict(crop=0), "crop"), (dict(threads=-1), "threads")])  # fmt: skip
def test_sizes_of_an_image_list(options, text):
    with pytest.raises(ValueError, match=text):
        ImageList(["a"], resize=18, **{"crop": 16, **options})


def write_lists(folder: Path, train: list[int], test: list[int], names: tuple[str, str]) -> None:
    """Lists that name one picture over and over."""
    save(folder / "a b" / "one.png", image(9, 9))
    for name, labels in zip(names, (train, test)):
        (folder / name).write_text("".join(f"a b/one.png {label}\n" for label in labels))


@pytest.mark.parametrize("name, title", [("imagenet-lt", "ImageNet_LT"), ("places-lt", "Places_LT"),
                                         ("sun397-lt", "SUN397_LT")])  # fmt: skip
def test_lists_of_files(tmp_path, name, title):
    write_lists(tmp_path, [0, 2, 1, 0], [2, 0, 1], (f"{title}_train.txt", f"{title}_test.txt"))
    data = load(name, root=tmp_path, num_classes=3, resize=8, train_crop=8, crop=6, threads=1)
    assert data.class_counts.tolist() == [2, 1, 1]
    assert (data.train[0].shape, data.test[0].shape) == ((4, 3, 8, 8), (3, 3, 6, 6))
    assert data.test[1].tolist() == [2, 0, 1]
    assert data.pixel_mean == (0.485, 0.456, 0.406)
    assert torch.equal(data.train[0].index_select(0, torch.tensor([0]))[0], decode(tmp_path / "a b" / "one.png", 8, 8))


def test_inaturalist_has_json_too(tmp_path):
    for part, labels in (("train", [1, 0, 1]), ("val", [0, 1])):
        save(tmp_path / f"{part}.png", image(9, 9))
        images = [{"id": 70 + row, "file_name": f"{part}.png"} for row in range(len(labels))]
        notes = [{"id": row, "image_id": 70 + row, "category_id": label} for row, label in enumerate(labels)]
        (tmp_path / f"{part}2018.json").write_text(json.dumps({"images": images[::-1], "annotations": notes}))
    options = dict(root=tmp_path, num_classes=2, resize=8, train_crop=8, crop=8, threads=1)
    data = load("inaturalist2018", train_list="train2018.json", test_list="val2018.json", **options)
    assert data.train[1].tolist() == [1, 0, 1]
    assert data.test[0].files == ["val.png", "val.png"]
    assert data.pixel_deviation == (0.195, 0.194, 0.192)
    with pytest.raises(ValueError, match=r"iNaturalist18_train\.txt, .*iNaturalist18_val\.txt\. Nothing is downloaded"):
        load("inaturalist2018", **options)


def test_lists_and_images_may_lie_apart(tmp_path):
    write_lists(tmp_path / "images", [0, 1], [1], ("t.txt", "v.txt"))
    (tmp_path / "lists").mkdir()
    for name in ("t.txt", "v.txt"):
        (tmp_path / "images" / name).rename(tmp_path / "lists" / name)
    options = dict(root=tmp_path / "images", train_list="t.txt", test_list="v.txt", num_classes=2)
    assert len(load("places-lt", lists=tmp_path / "lists", **options).train[1]) == 2
    with pytest.raises(ValueError, match=r"missing: .*images/t\.txt, .*images/v\.txt"):
        load("places-lt", **options)


@pytest.mark.parametrize(
    "train, options, text",
    [
        ("a b/one.png 0\na b/one.png 1\n", dict(imbalance=10), "imbalance must be None for places-lt"),
        ("a b/one.png 0\na b/one.png 2\n", {}, "num_classes must be above the largest label 2, got 2"),
        ("a b/one.png 0\n", {}, r"t\.txt' must name an image of each of 2 classes, got none of 1"),
        ("a b/one.png x\n", {}, r"t\.txt' must have `path label` a line, got 'a b/one.png x' in line 1"),
        ("\n\n", {}, r"t\.txt' must name an image, got none"),
        ("none.png 0\n", {}, "root must be the folder where the lists' paths begin, got .*: no none.png in it"),
        ("a b/one.png 0\na b/one.png 1\n", dict(root=None), "root must name the folder of the images of Places-LT"),
        ("a b/one.png 0\na b/one.png 1\n", dict(train_list="t.json"), r"t\.json' must hold `images` and `annotations`"),
    ],
)
def test_bad_lists_are_named(tmp_path, train, options, text):
    write_lists(tmp_path, [0, 1], [1], ("t.txt", "v.txt"))
    (tmp_path / "t.txt").write_text(train)
    (tmp_path / "t.json").write_text('{"images": []}')
    settings = dict(root=tmp_path, train_list="t.txt", test_list="v.txt", num_classes=2)
    with pytest.raises(ValueError, match=text):
        load("places-lt", **{**settings, **options})


def test_places_lt_as_it_was_published(tmp_path):
    name = "places_lt_class_counts.txt"
    found = [folder / "shared" / "data" / name for folder in (ROOT, ROOT.parent)]
    file = next((path for path in found if path.exists()), None)
    if file is None:
        pytest.skip(f"the published class counts, shared/data/{name}, are not here")
    counts = [int(line) for line in file.read_text().split()]
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    write_lists(tmp_path, labels, list(range(365)), ("Places_LT_train.txt", "Places_LT_test.txt"))
    data = load("places-lt", root=tmp_path)
    assert data.class_counts.tolist() == counts
    assert (data.num_classes, len(data.train[1])) == (365, 62500)


def test_pillow_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="reading images needs pillow"):
        ImageList(["a"])


def test_the_readers_import_nothing_but_torch_and_numpy():
    code = "import sys, lt_kernels.data; print([m for m in ('PIL', 'torchvision', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"cifar10-lt", "cifar100-lt", "imagenet-lt", "places-lt", "inaturalist2018", "sun397-lt"} <= set(READERS)
