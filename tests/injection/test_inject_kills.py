"""kill -9 at moments over the whole of a run, then --resume: the same bits as a run that was left alone."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from lt_kernels.system.storage import LOCK
from tests.injection.runs import bits, left_over, same
from tests.nursery import Nursery

KILLS = 30


def moments(whole: Path) -> list[str]:
    return json.loads((whole.parent / "moments.json").read_text())


def chosen(number: int, of: int) -> list[int]:
    """Moments spread evenly over the run, the first and the last among them."""
    return [round(place * (of - 1) / (number - 1)) for place in range(number)]


def killed_and_resumed(nursery: Nursery, whole: Path, folder: Path, moment: int) -> bool:
    """Whether a run that died at a moment has, resumed, the bits of the whole one, and nothing else in its folder."""
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", folder, "--quiet"]
    status, text = nursery.run(*words, before=f"moments.die_at({moment})")
    assert status == -signal.SIGKILL, text
    was_done = (folder / "result.json").exists()  # then its lock is left, and nobody's; it is not taken up again
    # the state of the generators that a resumed process happens to have must not matter
    status, text = nursery.run(*words, "--resume", before="torch.manual_seed(1)")
    assert status == 0, text
    return same(bits(folder), bits(whole)) and left_over(folder) in ([], [LOCK][:was_done])


def test_the_moments_are_of_every_kind(whole: Path) -> None:
    names = moments(whole)
    unseen = {"unlink"} if sys.version_info < (3, 11) else set()  # there pathlib has a function of its own
    assert set(names) == {"open", "write", "fsync", "replace", "unlink", "step"} - unseen
    assert names.count("step") == 20
    kinds = {names[moment] for moment in chosen(KILLS, len(names))}
    assert kinds >= {"open", "write", "fsync", "replace", "step"}, "the chosen ones are, too"


@pytest.mark.slow
def test_every_kill_resumes_to_the_same_bits(
    nursery: Nursery, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = moments(whole)
    found = {
        moment: killed_and_resumed(nursery, whole, tmp_path / str(moment), moment)
        for moment in chosen(KILLS, len(names))
    }
    with capsys.disabled():
        print(f"\n{sum(found.values())} of {len(found)} kills resumed to the same bits")
    assert len(found) == KILLS
    assert [f"{moment}: {names[moment]}" for moment, right in found.items() if not right] == []


def test_a_run_killed_twice(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    """Within the first epoch, and within a write of the run that went on from there."""
    words = ["train", "--config", whole.parent / "recipe.yaml", "--out", tmp_path / "run", "--quiet", "--resume"]
    for moment in (30, 33):
        assert nursery.run(*words, before=f"moments.die_at({moment})")[0] == -signal.SIGKILL
    assert nursery.run(*words)[0] == 0
    assert same(bits(tmp_path / "run"), bits(whole))
    assert left_over(tmp_path / "run") == []
