"""Write docs/licenses.md: under which licence each pinned package is, as its own metadata says.

python -m tools.licenses reads what is installed, and fetches the wheels of what is not.
"""

from __future__ import annotations

import argparse
import email
import importlib.metadata
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.pins import PYTHONS, ROOT, Pin, fetched, key, pins

FILE = ROOT / "docs" / "licenses.md"
HEAD = """# Licences of what the package depends on

`lt_kernels` itself is under Apache-2.0 ([LICENSE](../LICENSE)) and holds no code of these packages; they are installed
beside it. The package needs torch and NumPy; the others serve the trainer, the kernels of GPUs, the tests and the
benchmarks, or packages of this list. The table is written by `python -m tools.licenses` from the metadata of the
versions that `constraints.txt` pins.

| package | version | licence |
|---|---|---|
"""
LONGEST = 120  # characters of a licence's name; what is longer is its text


def main(argv: Sequence[str] | None = None, file: Path = FILE) -> int:
    """Write the document; return the exit status."""
    argparse.ArgumentParser("python -m tools.licenses", description="Write docs/licenses.md.").parse_args(argv)
    wanted = pins()
    rows: dict[str, tuple[str, list[str], str]] = {}
    installed = {key(one.metadata["Name"]): one.metadata for one in importlib.metadata.distributions()}
    told = installed | _fetched([pin for pin in wanted if key(pin.name) not in installed])
    for pin in wanted:
        rows.setdefault(pin.name, (pin.name, [], licence_of(told[key(pin.name)])))[1].append(pin.version)
    lines = [f"| {name} | {', '.join(versions)} | {licence} |" for name, versions, licence in rows.values()]
    file.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _fetched(missing: Sequence[Pin]) -> dict[str, Any]:
    """The metadata of packages that are not installed, out of their wheels."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for python in PYTHONS:
            fetched([pin for pin in missing if key(pin.name) not in found], python, Path(folder))
            for wheel in Path(folder).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    (name,) = [one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one)]
                    metadata = email.message_from_bytes(archive.read(name))
                found[key(metadata["Name"])] = metadata
    return found


def licence_of(metadata: Any) -> str:
    """The licence that a package's metadata names: its expression, else its field, else its classifiers."""
    for heading in ("License-Expression", "License"):
        text = " ".join((metadata.get(heading) or "").split())
        if text and len(text) <= LONGEST and text != "UNKNOWN":
            return text.replace("|", "/")
    classifiers = metadata.get_all("Classifier") or []
    named = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
    return ", ".join(named) or "not named: see its LICENSE file"


if __name__ == "__main__":
    raise SystemExit(main())
