"""Runs on photographs: pictures in files and a CIFAR archive, from the reader to the accuracies."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("PIL", reason="pillow, which matplotlib brings along, is not installed")

from PIL import Image

from lt_kernels.data import load
from lt_kernels.data.cifar import ARCHIVES
from lt_kernels.data.images import ImageList
from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.run.training import train_run
from tests.data.test_images import write_cifar

COUNTS = (9, 4, 2)
QUICK = {"epochs": 2, "batch_size": 4, "lr": 0.01, "warmup_epochs": 0, "threads": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of three colours in folders, 9, 4 and 2 for training and two each for the test."""
    random = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for label, count in enumerate(COUNTS):
        for index in range(count + 2):
            pixels = random.integers(0, 90, (36, 40, 3), dtype=np.uint8)
            pixels[..., label] += 150
            name = f"{label}/{index}.png"
            (tmp_path / str(label)).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name)
            lines["train" if index < count else "test"].append(f"{name} {label}\n")
    for part, listed in lines.items():
        (tmp_path / f"Places_LT_{part}.txt").write_text("".join(listed))
    return tmp_path


def settings(folder: Path, **changes: object) -> dict[str, object]:
    options = {"root": str(folder), "num_classes": 3, "resize": 36, "train_crop": 36, "crop": 32, "threads": 2}
    return {**QUICK, "data": "places-lt", "data_options": options, "network": "resnet10",
            "network_options": {"width": 4}, "method": "bs", "augment": "resized-crop-jitter", **changes}  # fmt: skip


def losses(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_a_run_on_pictures_in_files_is_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    config = make_config(settings(folder))
    result = train_run(config, tmp_path / "first")
    assert result["class_counts"] == list(COUNTS)
    assert result["samples"] == {"train": 15, "test": 6}
    assert set(result["accuracy"]) <= {"many", "medium", "few", "all", "gm"}
    train_run(config, tmp_path / "second")
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert len(losses(tmp_path / "first")) == 2


def test_mixup_comes_after_the_augmentation(folder: Path, tmp_path: Path) -> None:
    config = make_config(settings(folder, method="ce-mixup", method_options={"mixup_alpha": 0.2}, epochs=1))
    assert np.isfinite(float(train_run(config, tmp_path / "run")["accuracy"]["all"]))


def test_a_missing_folder_is_a_setting_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data places-lt.*missing: .*nowhere"):
        train_run(make_config(settings(tmp_path / "nowhere")), tmp_path / "run")


def test_a_run_on_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHIVES, "cifar10-lt", ARCHIVES["cifar10-lt"]._replace(per_class=12))
    write_cifar(tmp_path / "cifar-10-batches-py", 10, 12)
    config = make_config({**QUICK, "data": "cifar10-lt", "imbalance": 6, "data_options": {"root": str(tmp_path)},
                          "network": "resnet32", "network_options": {"width": 2, "blocks": 1}, "method": "dbm-bcl",
                          "augment": "autoaugment-cutout", "epochs": 1})  # fmt: skip
    result = train_run(config, tmp_path / "run")
    assert (result["class_counts"][0], result["class_counts"][-1]) == (12, 2)


def test_rows_may_be_asked_for_before_they_are_needed(folder: Path) -> None:
    pictures = ImageList([f"0/{index}.png" for index in range(6)], folder, 36, 32, threads=2)
    whole = torch.cat(list(pictures.split(6)))
    for ahead, taken in ([[1, 3], [1, 3]], [[5], [5]], [[0, 1], [2, 4]], [[3, 2], [2, 3]], [[2, 3], [2, 3]]):
        pictures.prefetch(torch.tensor(ahead))
        assert torch.equal(pictures.index_select(0, torch.tensor(taken)), whole[taken])
    (folder / "0" / "2.png").unlink()
    pictures.prefetch(torch.tensor([2]))
    with pytest.raises(ValueError, match=r"0/2\.png' is missing"):
        pictures.index_select(0, torch.tensor([2]))


def test_a_list_of_another_encoding_and_a_crop_too_large_are_named(folder: Path) -> None:
    options = {"root": folder, "num_classes": 3, "resize": 8}
    with pytest.raises(ValueError, match="train_crop must be at most resize = 8, got 9"):
        load("places-lt", **options, train_crop=9, crop=8)
    (folder / "latin.txt").write_bytes("caf\xe9.png 0".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt' must be UTF-8"):
        load("places-lt", **{**options, "train_list": "latin.txt"}, train_crop=8, crop=8)
