"""What is written about the pinned packages is of the pins: their hashes, and their licences."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from tools import hashes, licenses
from tools.pins import CONSTRAINTS, ROOT, key, pins

LINES = [pin.line for pin in pins() if pin.name not in hashes.LEFT_OUT]


def test_every_pin_has_the_hashes_of_its_wheels():
    found = hashes.hashed()
    assert sorted(found) == sorted(LINES), "run python -m tools.hashes"
    wrong = [
        line
        for line, known in found.items()
        if not known or any(not re.fullmatch("[0-9a-f]{64}", one) for one in known)
    ]
    assert wrong == []


def test_what_has_no_hash_is_named():
    assert set(hashes.LEFT_OUT) <= {pin.name for pin in pins()}
    assert "torch" not in {pin.partition("==")[0] for pin in hashes.hashed()}


def test_every_pin_has_its_licence():
    text = licenses.FILE.read_text(encoding="utf-8")
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")][1:]
    versions: dict[str, list[str]] = {}
    for pin in pins():
        versions.setdefault(pin.name, []).append(pin.version)
    told = {name: known.split(", ") for name, known, _ in rows}
    assert told == versions, "run python -m tools.licenses"
    assert all(licence for _, _, licence in rows)


def test_licences_are_those_of_the_installed_metadata():
    """As far as the pinned version is what is installed here."""
    lines = licenses.FILE.read_text(encoding="utf-8").splitlines()
    for one in importlib.metadata.distributions():
        name, version = key(one.metadata["Name"]), one.version.partition("+")[0]
        row = next((line for line in lines if line.startswith(f"| {name} | {version} |")), None)
        if row is not None:
            assert row == f"| {name} | {version} | {licenses.licence_of(one.metadata)} |", (
                "run python -m tools.licenses"
            )


def test_a_line_that_is_no_pin_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("# one\nnumpy==2.4.6\nrich>=15\n")
    with pytest.raises(ValueError, match=r"a\.txt must have `name==version` lines, got 'rich>=15'"):
        pins(tmp_path / "a.txt")


def test_markers_are_followed():
    names = {python: {pin.name for pin in pins() if pin.serves(python)} for python in ("3.10", "3.11", "3.13")}
    assert "exceptiongroup" in names["3.10"]
    assert "exceptiongroup" not in names["3.11"]
    for python in names:
        serving = [pin.name for pin in pins() if pin.serves(python)]
        assert len(set(serving)) == len(serving)


def test_set_up_by_hashes_takes_no_other_file():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nverify:\n")[2].partition("\n\n")[0]
    assert "--require-hashes --no-deps" in recipe
    assert "-r constraints-hashed.txt" in recipe
    assert CONSTRAINTS.exists()
