"""The set of Chinese characters: its classes and counts, its fonts, and images that depend on their number alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from lt_kernels.data import load
from lt_kernels.data.hanzi.characters import counts_of, frequent
from lt_kernels.data.hanzi.drawing import Glyphs
from lt_kernels.data.hanzi.fonts import TEST, Font, covering, divide, font_files
from lt_kernels.system.files import FileError

LATIN = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = "ABCDEFGH"


def latin() -> list[Font]:
    return [Font(str(LATIN / f"DejaVu{kind}.ttf"), 0, f"DejaVu {kind}", "Book") for kind in ("Sans", "Serif")]


def glyphs(seed: int = 0, rows: int = 64) -> Glyphs:
    return Glyphs(torch.arange(rows) % len(LETTERS), LETTERS, latin(), seed)


def test_characters_are_ordered_by_frequency(tmp_path: Path):
    (tmp_path / "dict.txt").write_text("一二 5 n\n三 7 n\nT恤 3 n\n一一 2 n\n四 7 n\n", encoding="utf-8")
    characters, frequency = frequent(4, tmp_path / "dict.txt")
    assert characters == "一三四二"  # 5 + 2 + 2, and the lower code first of two with 7
    assert frequency.tolist() == [9, 7, 7, 5]
    with pytest.raises(ValueError, match=r"num_classes must be in 2\.\.5"):
        frequent(6, tmp_path / "dict.txt")


@pytest.mark.parametrize("images", [20_000, 60_000, 110_000])
def test_counts_go_from_a_thousand_to_two(images: int):
    frequency = 1e6 / np.arange(1, 2001) ** 1.3
    counts = counts_of(frequency, images)
    assert counts[0] == 1000
    assert counts[-1] == 2
    assert (np.diff(counts) <= 0).all()
    assert 0.99 * images < counts.sum() <= images


def test_a_power_of_the_frequency_where_nothing_is_bent():
    frequency = np.array([1000.0, 100.0, 10.0, 2.0])
    assert counts_of(frequency, 1112).tolist() == [1000, 100, 10, 2]
    with pytest.raises(ValueError, match=r"images must be in .* for 4 classes, got 5"):
        counts_of(frequency, 5)


def test_an_image_depends_on_its_number_and_the_seed_alone():
    one, other = glyphs(), glyphs()
    whole = torch.cat(list(one.split(10)))
    assert whole.dtype == torch.uint8
    assert tuple(whole.shape) == tuple(one.shape) == (64, 1, 32, 32)
    mixed = torch.randperm(64)
    assert torch.equal(other.index_select(0, mixed), whole[mixed])
    assert torch.equal(torch.stack([other.read(row) for row in (9, 63)]), whole[[9, 63]])  # by another thread
    assert torch.equal(pickle.loads(pickle.dumps(one))[7], whole[7])
    assert not torch.equal(glyphs(seed=1)[7], whole[7])
    assert len({image.numpy().tobytes() for image in whole}) == 64


def test_images_show_their_letter():
    """The nearest of the classes' means, on the first half, names most letters of the second."""
    rows = Glyphs(torch.arange(1600) % len(LETTERS), LETTERS, latin(), 0)
    images = torch.cat(list(rows.split(256))).float().flatten(1)
    assert (images.amax(1) > 100).all()
    means = torch.stack([images[:800][rows.labels[:800] == label].mean(0) for label in range(len(LETTERS))])
    predicted = torch.cdist(images[800:], means).argmin(1)
    assert (predicted == rows.labels[800:]).float().mean() > 0.6  # 1 / 8 by chance


def test_fonts_that_have_all_characters(tmp_path: Path):
    found = covering(LETTERS, [LATIN], tmp_path)
    families = {font.family for font in found}
    assert {"DejaVu Sans", "DejaVu Serif", "STIXGeneral"} <= families
    assert covering(LETTERS, [LATIN], tmp_path) == found  # as they were kept
    assert "DejaVu Serif" not in {font.family for font in covering(LETTERS + "\u05d0", [LATIN], tmp_path)}
    assert (
        covering("\u4e00\u4e01\u4e03", [LATIN], tmp_path) == []
    )  # a font of last resort is there, which draws all alike
    with pytest.raises(ValueError, match="fonts must be folders and files that there are, got 'nowhere'"):
        font_files(["nowhere"])


def test_a_font_that_a_link_leads_to_counts_once(tmp_path: Path):
    (tmp_path / "one.ttf").write_bytes(b"")
    (tmp_path / "link.ttf").symlink_to("one.ttf")
    assert font_files([tmp_path]) == [tmp_path / "one.ttf"]
    assert font_files([tmp_path / "link.ttf", tmp_path / "one.ttf"]) == [tmp_path / "one.ttf"]


def test_no_font_is_on_both_sides():
    fonts = [Font(f"{name}.ttf", 0, name, "Regular") for name in ("Aa", "Aa Mono", "Bb", "Cc")]
    train, test = divide(fonts, ["Aa"])
    assert [font.family for font in test] == ["Aa", "Aa Mono"]
    assert [font.family for font in train] == ["Bb", "Cc"]
    for wrong in (["Dd"], ["Aa", "Bb", "Cc"]):
        with pytest.raises(FileError, match="fonts-lxgw-wenkai"):
            divide(fonts, wrong)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hanzi")


def real(cache: Path, **options: object):
    try:
        return load("hanzi-lt", cache_dir=cache, num_classes=200, images=8_000, **options)
    except (FileError, ImportError) as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
def test_the_set_of_this_machine(cache: Path):
    asked, kept = real(cache, keep=False), real(cache)
    assert kept.class_counts[0] == 1000
    assert kept.class_counts[-1] == 2
    assert kept.class_names[:3] == ("一", "是", "人")
    assert torch.bincount(kept.test[1]).tolist() == [3] * 200
    train, test = asked.train[0], asked.test[0]
    assert isinstance(train, Glyphs)
    assert isinstance(test, Glyphs)
    assert all(not font.family.startswith(TEST) for font in train.fonts)
    assert all(font.family.startswith(TEST) for font in test.fonts)
    assert {font.path for font in train.fonts}.isdisjoint(font.path for font in test.fonts)
    some = torch.arange(0, len(kept.train[1]), 97)
    assert torch.equal(kept.train[0][some], train.index_select(0, some))
    with pytest.raises(ValueError, match="imbalance must be None"):
        load("hanzi-lt", imbalance=100)
