"""What a core loads: rates and memory of an epoch, the arithmetic of networks, and the table of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import loading, results
from benchmarks.tables.training import _figure as training_figure
from benchmarks.tables.training import loading_tables
from lt_kernels.data import LongTailedData, load

pytest.importorskip("lightning", reason="the harness needs the extra [train]")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> LongTailedData:
    """In the place of sets that need fonts or a package."""
    monkeypatch.setattr(loading, "CASES", {"hanzi-lt, drawn": loading.Case("digits-lt", {})})
    monkeypatch.setattr(loading, "BATCH", 4)
    return load("digits-lt")


def test_every_image_of_an_epoch_counts(digits: LongTailedData) -> None:
    taken = loading.epoch(loading.loaded(digits, None))
    assert sum(taken.images) == len(digits.train[1])
    assert len(taken.seconds) == len(taken.private) == -(-len(digits.train[1]) // (4 * loading.BLOCK))
    assert all(rate > 0 for rate in taken.rates())


def test_memory_that_grows_is_seen() -> None:
    """A mebibyte a batch that nobody gives back, after the part that is not counted; without it nothing grows."""
    kept: list[torch.Tensor] = []

    def batches(size: int) -> Iterator[int]:
        for _ in range(10 * loading.BLOCK):
            kept.append(torch.ones(size))
            yield 1

    assert loading.epoch(batches(2**18)).growth() == pytest.approx(2**20 * 7 * loading.BLOCK, rel=0.05)
    kept.clear()
    assert loading.epoch(batches(1)).growth() < 2**20


def test_arithmetic_of_a_network() -> None:
    """ResNet-32 of three channels has 69 million multiplications forward (He et al., 2016, and counted since)."""
    assert loading.arithmetic("resnet32") == pytest.approx(3 * 2 * 0.069, rel=0.02)


def test_measured_rates_become_a_table(digits: LongTailedData, tmp_path: Path) -> None:
    assert loading.main(["--case", "hanzi-lt, drawn", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("training/*.csv")
    rows = results.read(path)
    rate = next(row for row in rows if row.metric == "rate")
    assert rate.sizes == f"N=4 images={len(digits.train[1])}"
    made = loading_tables([rows])
    needed = 1e14 / (1e9 * next(row.p50 for row in rows if row.case == "resnet50"))
    assert made.splitlines()[-1].endswith(f" {training_figure(needed / rate.p50)} |")
    assert loading_tables([[row for row in rows if row.metric != "rate"]]) == ""
