"""Differences seed by seed between a method and the one that it builds on."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rich", reason="the extra [train] is not installed")

from lt_kernels.train.compare.pairs import BUILT_ON, paired, pairs_csv
from lt_kernels.train.methods.registry import BASE_METHODS


def runs(method: str, *accuracies: float, **options: Any) -> list[dict[str, Any]]:
    return [
        {"config": {"method": method, "seed": seed, "method_options": options}, "accuracy": {"all": value}}
        for seed, value in enumerate(accuracies)
    ]


def test_runs_are_matched_by_seed() -> None:
    results = {"ce": runs("ce", 70.0, 80.0, 60.0), "bs": list(reversed(runs("bs", 72.0, 79.0, 65.0)))}
    (pair,) = paired(results)
    assert (pair.method, pair.beside, pair.above, pair.seeds) == ("bs", "ce", 2, 3)
    assert pair.difference.mean == pytest.approx(2.0)  # of 2, -1 and 5
    assert pair.difference.deviation == pytest.approx(3.0)
    assert pairs_csv([pair]).splitlines()[1] == "bs,ce,+2.0 ± 3.0,-5.5,+9.5,2 of 3"


def test_a_method_stands_beside_what_it_builds_on() -> None:
    results = {name: runs(name, 1.0, 2.0) for name in ("ce", "bs", "bs-lwr", "dbm-bs", "dbm-ncl", "lade")}
    results["far"] = runs("bs-lwr", 3.0, 3.0, lwr_threshold=0.7)
    found = {pair.method: pair.beside for pair in paired(results)}
    assert found == {"bs": "ce", "bs-lwr": "bs", "dbm-bs": "bs", "dbm-ncl": "ce", "lade": "bs", "far": "bs-lwr"}
    assert paired({"bs": runs("bs", 1.0), "la": runs("la", 1.0)}) == []


def test_what_is_built_on_is_a_method() -> None:
    assert set(BUILT_ON) | set(BUILT_ON.values()) <= set(BASE_METHODS)
