"""The epoch of the GPU check, on a CPU at tiny sizes: what it says, what it finds, and what stands for the images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import eager, epoch, results
from benchmarks.gpu.report import Check
from benchmarks.tables.training import training_tables

AROUND = {"device": "NVIDIA X", "threads": 2, "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-01-01"}


def checking(folder: Path, minutes: float = 1.0) -> Check:
    return Check("cpu", True, 7, folder, minutes, dict(AROUND))


@pytest.mark.slow
def test_an_epoch_of_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = checking(tmp_path)
    epoch.epoch(check)
    said = capsys.readouterr().out
    assert check.failures == []
    assert "random bytes in place of hanzi-lt (the sizes are tiny)" in said
    for method in epoch.METHODS:
        for name in epoch.PROVIDERS:
            assert f"| {method} | {name} | 5 of 5 | " in said
    (path,) = tmp_path.glob("training/*.csv")
    made = training_tables([results.read(path)])
    assert made.startswith("random-images: NVIDIA X, ")
    assert [line.split(" | ")[0] for line in made.splitlines()[-3:]] == ["| arcface", "| bs", "| bs-lwr"]


def test_as_many_steps_as_the_time_allows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "METHODS", {"bs": epoch.METHODS["bs"]})
    epoch.epoch(checking(tmp_path, minutes=0.0))
    assert capsys.readouterr().out.count("| 1 of 5 |") == 2


def test_another_loss_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = eager.Head.forward
    monkeypatch.setattr(eager.Head, "forward", lambda self, *batch: 1.05 * plain(self, *batch))
    check = checking(tmp_path)
    epoch.agree("arcface", epoch.both("arcface", epoch.pictures(epoch.TINY), epoch.TINY, "cpu", 1), check)
    assert [failure.split(":")[0] for failure in check.failures] == ["epoch, arcface"]


@pytest.mark.parametrize("method", epoch.METHODS)
def test_a_step_moves_both_alike(method: str) -> None:
    data = epoch.pictures(epoch.TINY)
    training = epoch.both(method, data, epoch.TINY, "cpu", 1)
    before = training["ours"].head.weight.detach().clone()
    for _ in range(2):
        ours, theirs = (training[name]() for name in epoch.PROVIDERS)
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=epoch.AGREE, atol=0.0)
    moved = [training[name].head.weight.detach() - before for name in epoch.PROVIDERS]
    assert float(torch.cosine_similarity(*(part.flatten() for part in moved), dim=0)) > 0.99


def test_a_stand_in_has_the_shapes_and_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("hanzi-lt needs the dictionary")

    monkeypatch.setattr(epoch, "load", missing)
    made = epoch.pictures(epoch.Sizes(300, 9_000, 64, 64, 1))
    assert made.what == "random bytes in place of hanzi-lt (ImportError: hanzi-lt needs the dictionary)"
    assert tuple(made.images.shape) == (len(made.target), 1, 32, 32)
    assert made.images.dtype == torch.uint8
    assert 8_900 < len(made.target) <= 9_000
    assert torch.equal(made.target.bincount(), made.counts)
    assert (int(made.counts[0]), int(made.counts[-1])) == (1000, 2)


def test_it_needs_torch_numpy_and_no_more() -> None:
    program = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "torchmetrics", "yaml", "rich", "jieba", "fontTools", "PIL",
                                      "sklearn", "matplotlib", "jsonargparse", "tensorboard", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from benchmarks.gpu import check
check.own_tests()
from benchmarks import epoch
print(epoch.pictures(epoch.TINY._replace(batch=5)).what)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=results.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "random bytes in place of hanzi-lt" in done.stdout
