"""The table of classes: many classes are thinned out evenly, the best is marked, pictures are small."""

from __future__ import annotations

import base64
import io
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")
pytest.importorskip("PIL", reason="the extra [train] is not installed")

from PIL import Image

from lt_kernels.data import LongTailedData
from lt_kernels.data.lazy import LazyRows
from lt_kernels.train.compare import classes
from lt_kernels.train.config import TrainConfig


class Photographs(LazyRows):
    """Rows of 60 x 120 pixels, each of the colour that its class has."""

    dtype = torch.uint8
    shape = torch.Size([4, 3, 60, 120])

    def __len__(self) -> int:
        return 4

    def read(self, row: int) -> torch.Tensor:
        colour = torch.tensor([[255, 0, 0], [255, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=torch.uint8)[row]
        return colour[:, None, None].expand(3, 60, 120)


def data(kind: str = "image") -> LongTailedData:
    target = torch.tensor([0, 0, 0, 1])
    rows: torch.Tensor = Photographs(1)  # pyright: ignore[reportAssignmentType]
    return LongTailedData("photographs", (rows, target), (rows, target), torch.tensor([3, 1]), 2, kind, ("red", "blue"))  # type: ignore[arg-type]


def test_photographs_become_small_pictures() -> None:
    found = classes.thumbnails(data(), [1, 0])
    opened = {place: Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for place, uri in found.items()}
    assert {place: picture.size for place, picture in opened.items()} == {0: (24, 12), 1: (72, 12)}
    pixels = {place: picture.convert("RGB").getpixel((3, 3)) for place, picture in opened.items()}
    assert pixels == {0: (0, 0, 255), 1: (255, 0, 0)}
    assert classes.thumbnails(data("words"), [1, 0]) == {}


def test_many_classes_are_shown_evenly_by_their_count() -> None:
    counts = [(7 * place) % 1009 for place in range(1009)]
    shown = classes.shown_classes(counts)
    chosen = [counts[index] for index in shown]
    assert len(shown) == classes.MOST
    assert chosen == sorted(chosen, reverse=True)
    assert (chosen[0], chosen[-1]) == (1008, 0)
    assert {first - last for first, last in itertools.pairwise(chosen)} == {10, 11}
    assert classes.shown_classes([5, 9, 9]) == [1, 2, 0]


def test_the_best_of_a_class_is_marked_and_what_is_not_known_left_empty() -> None:
    nan = float("nan")
    results = {
        "ce": [{"per_class": [50.0, nan], "class_counts": [2000, 1]}],
        "bs": [{"per_class": [70.0, nan], "class_counts": [2000, 1]}],
    }
    table = classes.class_rows(results, ["cat", "dog"], [0, 1], "samples")
    assert table.rows == [["cat", "2,000", "50.0", "70.0"], ["dog", "1", "", ""]]
    assert table.best == {(0, 3)}
    assert table.head == ["class", "training samples", "ce", "bs"]


def test_a_report_does_without_data_that_are_gone(tmp_path: Path) -> None:
    gone = TrainConfig(data="cifar10-lt", network="resnet32", data_options={"root": str(tmp_path / "none")})
    assert classes.data_of(gone) is None
