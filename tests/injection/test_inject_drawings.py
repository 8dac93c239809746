"""kill -9 in a run on drawn characters, and while their file is drawn; then --resume: the bits of a run left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import matplotlib
import pytest

from lt_kernels.data.hanzi.drawing import SIDE
from lt_kernels.data.lazy import LARGEST_PART
from tests.injection.runs import bits, left_over, same
from tests.nursery import Nursery

LATIN = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
RECIPE = """
data: hanzi-lt
data_options: {{num_classes: 52, images: 1800, fonts: [{fonts}], test_fonts: [DejaVu Serif], keep: {keep}}}
network: resnet32
network_options: {{width: 4, blocks: 1}}
method: la-lwr
epochs: 2
batch_size: 64
lr: 0.05
checkpoint_steps: 8
threads: 1
"""
# Letters in the place of Chinese characters: every machine that has matplotlib has fonts for them.
LETTERS = """
import numpy, string
from lt_kernels.data import hanzi
hanzi.frequent = lambda classes: (string.ascii_letters[:classes], 1e6 / numpy.arange(1, classes + 1.0))
os.environ["XDG_CACHE_HOME"] = {cache!r}
"""
DIES = f"""
write, parts = os.write, [0]
def half(descriptor, data):
    parts[0] += len(data) == {LARGEST_PART * SIDE * SIDE}
    if parts[0] == 4:
        write(descriptor, data[: len(data) // 2])
        moments.die()
    return write(descriptor, data)
os.write = half
"""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]


def words_of(folder: Path, keep: bool, out: str) -> tuple[list[str | Path], str]:
    """A command that trains, and what its process does first."""
    recipe = folder / f"{keep}.yaml"
    recipe.write_text(RECIPE.format(fonts=LATIN, keep=str(keep).lower()))
    return ["train", "--config", recipe, "--out", folder / out, "--quiet"], LETTERS.format(cache=str(folder / "cache"))


@pytest.fixture(scope="module", params=[True, False], ids=["mapped", "drawn"])
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder of a run left alone, whose images are mapped from a file, or drawn when they are asked for."""
    root = tmp_path_factory.mktemp("whole")
    words, letters = words_of(root, request.param, "whole")
    status, text = nursery.run(*words, before=letters)
    assert status == 0, text
    assert len(list((root / "cache" / "lt_kernels").glob("hanzi-images-*"))) == (2 if request.param else 0)
    return root / "whole"


@pytest.mark.parametrize("step", [3, 21, 45])
def test_killed_within_an_epoch(nursery: Nursery, whole: Path, step: int) -> None:
    """Before the first checkpoint, in the first epoch of 29 steps, and in the second one."""
    (recipe,) = whole.parent.glob("*.yaml")
    words, letters = words_of(whole.parent, recipe.stem == "True", f"killed-{step}")
    status, text = nursery.run(*words, before=f"{letters}\nmoments.at_step({step}, moments.die)")
    assert status == -signal.SIGKILL, text
    status, text = nursery.run(*words, "--resume", before=f"{letters}\ntorch.manual_seed(1)")
    assert status == 0, text
    assert same(bits(whole.parent / f"killed-{step}"), bits(whole))
    assert left_over(whole.parent / f"killed-{step}") == []


def test_killed_while_the_images_are_drawn(nursery: Nursery, tmp_path: Path) -> None:
    """What was drawn is not taken for all of it, and does not stay; the next run draws the images anew."""
    words, letters = words_of(tmp_path, True, "run")
    assert nursery.run(*words, before=letters + DIES)[0] == -signal.SIGKILL
    kept = tmp_path / "cache" / "lt_kernels"
    (half,) = kept.glob(".hanzi-images-*.tmp")
    assert half.stat().st_size == 3.5 * LARGEST_PART * SIDE * SIDE
    assert list(kept.glob("hanzi-images-*")) == []
    status, text = nursery.run(*words, "--resume", before=letters)
    assert status == 0, text
    assert [path.name for path in kept.iterdir() if path.name.startswith(".")] == []
    left_alone, letters = words_of(tmp_path, False, "drawn")
    assert nursery.run(*left_alone, before=letters)[0] == 0
    first, second = (bits(tmp_path / name) for name in ("run", "drawn"))
    assert same(first["state_dict"], second["state_dict"])
