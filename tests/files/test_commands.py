"""The commands on files that are odd: settings with a byte order mark, and a picture that is none in mid-training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lt_kernels import cli

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pillow = pytest.importorskip("PIL.Image", reason="the extra [train] is not installed")

SETTINGS = """\ufeffdata: places-lt
data_options: {root: ROOT, num_classes: 2, resize: 8, train_crop: 8, crop: 8, threads: 1}
network: mlp
epochs: 1
warmup_epochs: 0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings and lists of an editor that puts a mark first, and six pictures, of which the fourth is none."""
    for index in range(6):
        pillow.fromarray(np.full((10, 10, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    content = "\ufeff" + "".join(f"{index}.png\t{index % 2}\r\n" for index in range(6))
    for name in ("Places_LT_train.txt", "Places_LT_test.txt"):
        (tmp_path / name).write_bytes(content.encode())
    path = tmp_path / "settings.yaml"
    path.write_bytes(SETTINGS.replace("ROOT", str(tmp_path)).replace("\n", "\r\n").encode())
    return path


def test_a_picture_that_cannot_be_read_ends_a_run_in_a_line(config, capfd):
    assert cli.main(["train", "--config", str(config), "--out", str(config.parent / "run"), "--quiet"]) == 2
    error = capfd.readouterr().err
    assert "lt-kernels train: the image" in error
    assert "3.png' cannot be read as a picture" in error
    assert "Traceback" not in error


def test_a_picture_that_cannot_be_read_ends_a_comparison_in_a_line(config, capfd):
    words = ["--data", "places-lt", "--methods", "ce,bs", "--seeds", "1", "--jobs", "1", "--quiet"]
    out = str(config.parent / "compared")
    assert cli.main(["compare", "--config", str(config), "--out", out, *words]) == 2
    error = capfd.readouterr().err
    assert "3.png' cannot be read as a picture" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "content, text",
    [
        (b"\xef\xbb\xbfa.png \xc2\xb2\r\n", "in line 1, where a label is digits 0 to 9"),
        (b"0.png 10000000000000000000000000\n", "labels in 0..2147483646, got 10000000000000000000000000 in line 1"),
        (b"0.png 0\n0.png 5\n", "num_classes must be above the largest label 5, got 2; it is in line 2"),
        (b"0.png 0\n\xff.png 1\n", "must be UTF-8, line 2 is not"),
        (b"", "must name an image, got none"),
    ],
)
def test_a_list_that_does_not_fit_ends_a_run_in_a_line(config, capfd, content, text):
    (config.parent / "Places_LT_train.txt").write_bytes(content)
    assert cli.main(["train", "--config", str(config), "--out", str(config.parent / "run"), "--quiet"]) == 2
    error = capfd.readouterr().err
    assert text in error
    assert "Places_LT_train.txt" in error
    assert "Traceback" not in error


def test_rows_that_a_spreadsheet_saved(tmp_path):
    from lt_kernels.train.files.results import read_rows

    (tmp_path / "metrics.csv").write_bytes("\ufeffepoch,step,loss,seconds\r\n1,10,-0.5,2\r\n".encode())
    assert read_rows(tmp_path) == [{"epoch": 1.0, "step": 10.0, "loss": -0.5, "seconds": 2.0}]
