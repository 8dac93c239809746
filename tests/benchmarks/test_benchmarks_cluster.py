"""Class weights over several processes: the document says what the formulas do, and the measuring processes run."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from benchmarks.cluster import formulas, million, tables
from benchmarks.cluster.formulas import Sent
from lt_kernels.ops.ranks.exchange import HEAD

TEXT = tables.DOCUMENT.read_text(encoding="utf-8")


def test_the_tables_are_what_formulas_and_files_say() -> None:
    assert tables.rewritten(TEXT) == TEXT, "run python -m benchmarks.cluster.tables"
    assert TEXT.count("<!-- table: cluster-") == 3


def test_numbers_in_the_text_are_the_codes() -> None:
    words = " ".join(TEXT.split())
    assert f"A frame has {8 * HEAD} bytes of checksums and errors" in words
    assert f"With d = {tables.FEATURES} and {tables.ROWS:,} rows in the batch of all ranks" in words
    one = formulas.payload(1000, targets=2, smoothing=True) - formulas.payload(1000, targets=2)
    assert one == 2 * 1000 * formulas.FLOAT
    assert formulas.payload(1000) == (3 + 2) * 1000 * formulas.FLOAT
    assert formulas.replicated_memory(10, 3) == 16 * 10 * 3
    assert formulas.sharded_memory(11, 3, 2, 5).stays == 16 * 6 * 3
    assert formulas.sharded_memory(1000, 3, 2, 5, 0.1).chosen == 8 * 50 * 3
    assert formulas.fully_sharded_memory(10, 3, 2) == 16 * 5 * 3 + 8 * 10 * 3


def test_a_ring_sends() -> None:
    sent = [Sent("all_gather", 12), Sent("reduce_scatter", 12), Sent("all_reduce", 12)]
    assert [one.wire(3) for one in sent] == [24, 8, 16]
    assert formulas.wire(sent, 3) == 48


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
def test_a_measurement_is_made_of_what_processes_say() -> None:
    sizes: dict[str, Any] = {"classes": 200_000, "features": 64, "rows": 8, "world": 2, "steps": 1, "sample": 0.05}
    found = million.measured(sizes)
    held = formulas.sharded_memory(sizes["classes"], sizes["features"], 2, 8, 0.05)
    assert held.stays < found["peak"] < 3 * held.stays
    assert all(second > 0 for second in found["seconds"])
    about = {"device": "CPU", "torch": "2", "commit": "c", "date": "d", "cpus": 2, "load": 0.0}
    line = tables.measured_table({"about": about, "rows": [found]}).splitlines()[-1]
    assert line.startswith("| 200,000 | sample=0.05 | ")
