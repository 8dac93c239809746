"""Writes the table of docs/reliability.md from benchmarks/results/fuzz.json, which `make fuzz ARGS=--write` wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT
from benchmarks.tables.markdown import markdown, section

DOCUMENT = ROOT / "docs" / "reliability.md"
DTYPES = ("float64", "float32", "bfloat16", "float16")
WINGS = ("as shipped", "compiled", "reference")


def fuzz_table(found: Mapping[str, Any]) -> str:
    """Cases by function or loss, dtype and kernels; the largest error beyond torch's, in tolerances."""
    count: dict[tuple[str, str], int] = defaultdict(int)
    worst: dict[str, float] = defaultdict(float)
    for row in found["rows"]:
        for column in (row["dtype"], row["wing"], "all"):
            count[row["name"], column] += row["cases"]
            count["all", column] += row["cases"]
        for name in (row["name"], "all"):
            worst[name] = max(worst[name], row["worst"])
    names = [*sorted(name for name in worst if name != "all"), "all"]
    columns = (*DTYPES, *WINGS, "all")
    lines = [
        [f"`{name}`" if name != "all" else "all", *(f"{count[name, one]:,}" for one in columns), f"{worst[name]:.2f}"]
        for name in names
    ]
    return caption(found) + "\n\n" + markdown(("name", *DTYPES, *WINGS, "cases", "worst"), lines)


def caption(found: Mapping[str, Any]) -> str:
    """What was run, where, and how it ended."""
    skipped = "; ".join(f"{number:,}: {why}" for why, number in found["skipped"].items())
    run = f"{found['cases']:,} cases judged from seed {found['seed']} in {found['seconds']:,} s"
    return (
        f"{found['device']}, torch {found['torch']}, commit {found['commit']}, {found['date']}: {run}, "
        f"{found['failures']} wrong answers. Drawn, but without an answer of the judge's: {skipped or 'none'}. The "
        "last column is the largest error beyond that of eager torch, in units of the tolerance: 1 would be wrong."
    )


def main() -> int:
    """Rewrite the marked section of the document; it stays as it is without a file."""
    path = Path(RESULTS / "fuzz.json")
    if path.exists():
        made = fuzz_table(json.loads(path.read_text(encoding="utf-8")))
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(section(text, "fuzz", made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
