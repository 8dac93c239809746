"""docs/methods.md says what the registry holds: the table is the one that the script writes, and its tests exist."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="the extra [train] is not installed")

from benchmarks.tables import methods
from lt_kernels.train.methods.registry import BASE_METHODS

TESTS = {path.stem for path in Path(__file__).resolve().parents[1].rglob("test_*.py")}


def test_the_tables_are_up_to_date(tmp_path: Path) -> None:
    copies = []
    ours = {methods.DOCUMENT: (methods.table(), methods.missing_table()), methods.LOSSES: (methods.losses_table(),)}
    for document, tables in ours.items():
        old = document.read_text(encoding="utf-8")
        for table in tables:
            assert table in old, "run make readme"
            old = old.replace(table, "old")
        copies.append(tmp_path / document.name)
        copies[-1].write_text(old, encoding="utf-8")
    methods.main(*copies)
    for document, copy in zip((methods.DOCUMENT, methods.LOSSES), copies, strict=True):
        assert copy.read_text(encoding="utf-8") == document.read_text(encoding="utf-8")


def test_every_method_has_a_form_and_tests() -> None:
    assert set(methods.FORMS) <= set(BASE_METHODS)
    named = {test for _, tests in methods.FORMS.values() for test in tests}
    assert sorted(named - TESTS) == []
    assert [name for name, method in BASE_METHODS.items() if not method.source] == []
