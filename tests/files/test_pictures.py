"""What a file of a picture may hold: every mode, every size, and what is damaged or no picture at all."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_kernels.data.images import ImageList, decode

pillow = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings along, is not installed")
SIDE = 8


def saved(path: Path, picture, **options) -> Path:
    picture.save(path, **options)
    return path


def first(path: Path) -> list[int]:
    """The first pixel, red, green and blue."""
    return decode(path, SIDE, SIDE)[:, 0, 0].tolist()


def png(path: Path, width: int, height: int, kind: int = 2) -> Path:
    """A file whose head claims a size, with next to no pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 10))]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*parts, (b"IEND", b"")]
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path, ending):
    levels = np.array([0, 128, 129, 256, 257 * 100, 32768, 40000, 65535], np.uint16)
    path = saved(tmp_path / f"grey.{ending}", pillow.fromarray(np.tile(levels, (SIDE, 1))))
    found = decode(path, SIDE, SIDE)
    assert found[:, 0].tolist() == [[0, 0, 1, 1, 100, 128, 156, 255]] * 3  # round(level / 257)


def test_sixteen_bits_in_the_other_order_of_bytes(tmp_path):
    picture = pillow.frombytes("I;16B", (SIDE, SIDE), b"\x9c\x40" * SIDE**2)
    assert first(saved(tmp_path / "grey.tiff", picture)) == [156] * 3


def test_sixteen_bits_with_a_transparent_level(tmp_path):
    grey = pillow.fromarray(np.full((SIDE, SIDE), 40000, np.uint16))
    assert first(saved(tmp_path / "grey.png", grey, transparency=40000)) == [156] * 3


@pytest.mark.parametrize("value, level", [(0.0, 0), (0.5, 128), (1.0, 255)])
def test_floats_from_0_to_1_are_scaled(tmp_path, value, level):
    assert first(saved(tmp_path / "f.tiff", pillow.fromarray(np.full((SIDE, SIDE), value, np.float32)))) == [level] * 3


@pytest.mark.parametrize("values", [np.float32(200), np.float32(-0.1), np.float32("nan"), np.int32(200)])
def test_numbers_whose_white_is_not_known_are_refused(tmp_path, values):
    path = saved(tmp_path / "odd.tiff", pillow.fromarray(np.full((SIDE, SIDE), values)))
    text = r"odd\.tiff' cannot be read as a picture: it holds (floats in .*must be in 0\.\.1|32-bit integers)"
    with pytest.raises(ValueError, match=text):
        decode(path, SIDE, SIDE)


ORANGE = (255, 128, 0)
GREY = 151  # of that orange
MODES = [
    ("1", "png", 0, [255, 255, 255]),
    ("L", "png", 0, [GREY] * 3),
    ("LA", "png", 0, [GREY] * 3),
    ("RGBA", "png", 0, list(ORANGE)),
    ("RGBA", "webp", 2, list(ORANGE)),
    ("CMYK", "jpg", 4, list(ORANGE)),
    ("CMYK", "tiff", 0, list(ORANGE)),
    ("YCbCr", "jpg", 4, list(ORANGE)),
    ("YCbCr", "tiff", 4, list(ORANGE)),
    ("PA", "tiff", 0, [255, 153, 0]),
    ("P", "gif", 0, [255, 153, 0]),
    ("P", "bmp", 0, [255, 153, 0]),
]


@pytest.mark.parametrize("mode, ending, off, expected", MODES, ids=[f"{one[0]}-{one[1]}" for one in MODES])
def test_every_mode_keeps_its_colour(tmp_path, mode, ending, off, expected):
    picture = pillow.new("RGB", (SIDE, SIDE), ORANGE)
    picture = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    path = saved(tmp_path / f"a.{ending}", picture)
    try:
        with pillow.open(path) as shown:
            shown.load()
    except OSError:
        pytest.skip("this Pillow does not read what it has written")
    found = first(path)
    assert max(abs(one - other) for one, other in zip(found, expected)) <= off


def test_transparency_is_dropped_and_the_colour_below_it_kept(tmp_path):
    palette = pillow.new("P", (SIDE, SIDE), 0)
    palette.putpalette([*ORANGE, 0, 255, 0])
    assert first(saved(tmp_path / "levels.png", palette, transparency=b"\x00\x80")) == list(ORANGE)
    assert first(saved(tmp_path / "index.png", palette, transparency=0)) == list(ORANGE)
    clear = pillow.new("RGBA", (SIDE, SIDE), (*ORANGE, 0))
    assert first(saved(tmp_path / "clear.png", clear)) == list(ORANGE)


def test_an_orientation_is_left_as_it_lies_in_the_file(tmp_path):
    array = np.zeros((SIDE, SIDE, 3), np.uint8)
    array[0] = 255
    exif = pillow.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    path = saved(tmp_path / "turned.png", pillow.fromarray(array), exif=exif)
    assert decode(path, SIDE, SIDE)[0, :, 0].tolist() == [255] + [0] * (SIDE - 1)


def test_of_several_pictures_the_first_is_taken(tmp_path):
    frames = [pillow.new("L", (SIDE, SIDE), level) for level in (90, 10, 200)]
    for name in ("a.gif", "a.tiff", "a.png"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert first(path) == [90] * 3


def test_a_thin_picture_is_refused_before_it_is_scaled(tmp_path):
    path = saved(tmp_path / "thin.png", pillow.new("L", (1, 60_000)))
    text = r"thin\.png' cannot be read as a picture: it has 256 x 15360000 pixels once its shorter side is 256, "
    with pytest.raises(ValueError, match=text + "at most 67,108,864 are allowed"):
        decode(path, 256, 224)
    assert decode(saved(tmp_path / "strip.png", pillow.new("L", (1, 500), 7)), 256, 224).unique().tolist() == [7]


@pytest.mark.parametrize(
    "size, text",
    [
        ((9000, 9000), "it has 9000 x 9000 pixels, at most 67,108,864 are allowed"),
        ((9900, 9900), "98010000 pixels"),  # where Pillow warns, and here a warning is an error
        ((2**31 - 1, 2**31 - 1), "decompression bomb"),
        ((4000, 4000), "truncated"),
        ((0, 5), "cannot identify"),
    ],
)
def test_what_a_head_claims(tmp_path, size, text):
    with pytest.raises(ValueError, match=rf"claim\.png' cannot be read as a picture: .*{text}"):
        decode(png(tmp_path / "claim.png", *size), 256, 224)


def test_no_format_that_starts_another_program(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(ValueError, match=r"a\.png' cannot be read as a picture: cannot identify"):
        decode(tmp_path / "a.png", 8, 8)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in [("pipe.png", "no regular file"), ("", "no regular file"), ("loop.png", "missing"),
                         ("gone\n.png", "missing"), ("a\0b.png", "missing"), ("\udce9.png", "missing")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"the image .* is {reason}"):
            decode(tmp_path / name, 8, 8)
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="'/dev/zero' is no regular file"):
            decode("/dev/zero", 8, 8)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about what it finds in a damaged head
def test_a_damaged_picture_is_read_or_named(tmp_path, ending):
    random = np.random.default_rng(0)
    whole = saved(tmp_path / f"whole.{ending}", pillow.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)))
    content = np.frombuffer(whole.read_bytes(), np.uint8)
    path = tmp_path / "damaged"
    for case in range(60):
        changed = content.copy()
        places = random.integers(0, min(len(changed), 200 if case % 2 else len(changed)), 4)
        changed[places] = random.integers(0, 256, 4)
        path.write_bytes(changed[: random.integers(len(changed))] if case % 3 == 0 else changed)
        assert read_or_named(path)


def read_or_named(path: Path) -> bool:
    try:
        return decode(path, SIDE, SIDE).shape == (3, SIDE, SIDE)
    except ValueError as error:
        return str(error).startswith(f"the image {str(path)!r} cannot be read as a picture: ")


@pytest.mark.parametrize(
    "error, text, options",
    [
        (TypeError, "files must be a sequence of paths, got 'a.png'", dict(files="a.png")),
        (ValueError, "resize must be at most 8192, got 10000", dict(files=["a"], resize=10_000)),
        (TypeError, "resize must be an integer, got 2.5", dict(files=["a"], resize=2.5)),
    ],
)
def test_arguments_of_a_list(error, text, options):
    with pytest.raises(error, match=text):
        ImageList(**options)


def test_rows_of_a_list(tmp_path):
    for level in (10, 20):
        saved(tmp_path / f"{level}.png", pillow.new("L", (SIDE, SIDE), level))
    pictures = ImageList(["10.png", "20.png"], tmp_path, SIDE, SIDE, 1)
    assert [int(picture[0, 0, 0]) for picture in pictures] == [10, 20]
    assert int(pictures[-1][0, 0, 0]) == 20
    for row in (2, -1):
        with pytest.raises(IndexError, match=rf"index must be in 0\.\.1, got {row}"):
            pictures.index_select(0, torch.tensor([0, row]))
    assert pictures.index_select(0, torch.tensor([], dtype=torch.int64)).shape == (0, 3, SIDE, SIDE)
