"""Writes the tables of docs/cluster.md: what ranks hold and send by formula, and what `million` has measured of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cluster import formulas
from benchmarks.results import RESULTS, ROOT
from benchmarks.tables.markdown import markdown, section

DOCUMENT = ROOT / "docs" / "cluster.md"
RESULT = RESULTS / "cluster.json"
CLASSES = (100_000, 1_000_000, 10_000_000)
RANKS = (1, 8, 64)
FEATURES, ROWS = 512, 1024  # of the computed tables; the rows are those of the batch of all ranks
SAMPLE = 0.1


def memory_table() -> str:
    """GiB of each rank, by classes and number of ranks."""
    header = ("classes", "ranks", "replicated", "`fully_shard`", "sharded", "logits, all", f"logits, sample={SAMPLE}")
    lines = []
    for classes in CLASSES:
        for world in RANKS:
            own = formulas.rows_of(classes, world)
            held = (
                formulas.replicated_memory(classes, FEATURES),
                formulas.fully_sharded_memory(classes, FEATURES, world) if world > 1 else None,
                formulas.sharded_memory(classes, FEATURES, world, ROWS).stays if world > 1 else None,
                ROWS * own * formulas.FLOAT,
                ROWS * round(SAMPLE * own) * formulas.FLOAT,
            )
            lines.append([f"{classes:,}", str(world), *("" if one is None else _size(one) for one in held)])
    return markdown(header, lines)


def wire_table() -> str:
    """MiB that each rank sends in a step, by classes and number of ranks."""
    header = ("classes", "ranks", "replicated (DDP)", "`fully_shard`", "sharded", "sharded, with `gather_batch`")
    lines = []
    for classes in CLASSES:
        for world in RANKS[1:]:
            statistics, numbers = formulas.payload(ROWS), classes * FEATURES
            head = formulas.head_step(ROWS, FEATURES, statistics)
            batch = formulas.batch_step(ROWS // world, world, FEATURES, statistics)
            sent = (
                formulas.replicated_step(numbers),
                formulas.fully_sharded_step(numbers, world),
                head,
                head + batch,
            )
            lines.append([f"{classes:,}", str(world), *(_size(formulas.wire(one, world)) for one in sent)])
    return markdown(header, lines)


def measured_table(found: Mapping[str, Any]) -> str:
    """What `million` has measured, beside the formula."""
    header = (
        "classes",
        "of a step",
        "a step, s",
        "peak of a process",
        "by formula",
        "weights, gradient, moments",
        "sampled rows",
        "logits",
    )
    return caption(found) + "\n\n" + markdown(header, map(_measured, found["rows"]))


def _measured(row: Mapping[str, Any]) -> list[str]:
    sizes = (row["classes"], row["features"], row["world"], row["rows"], row["sample"])
    held = formulas.sharded_memory(*sizes)
    p50, p20, p80 = row["seconds"]
    parts = (row["peak"], sum(held), held.stays, held.chosen, held.logits)
    share = "all" if row["sample"] == 1.0 else f"sample={row['sample']}"
    return [
        f"{row['classes']:,}",
        share,
        f"{p50:.2f} ({p20:.2f} to {p80:.2f})",
        *(f"{part / 2**20:,.1f} MiB" for part in parts),
    ]


def caption(found: Mapping[str, Any]) -> str:
    """What was measured, where, and beside what."""
    about, first = found["about"], found["rows"][0]
    return (
        f"{about['device']}, {first['world']} processes with one thread each, d = {first['features']}, "
        f"{first['rows']} rows, torch {about['torch']}, commit {about['commit']}, {about['date']}: the median of "
        f"{first['steps']} steps, in brackets the 20th and 80th percentile. {about['cpus']} processors had a load of "
        f"{about['load']} from other work before these processes started, which makes a step longer than on a quiet "
        "machine, but does not change what is held."
    )


def _size(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, of in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= of:
            return f"{size / of:,.1f} {unit}" if size < 100 * of else f"{size / of:,.0f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


def rewritten(text: str, result: Path = RESULT) -> str:
    """The document with its tables made anew; that of what was measured stays if there is no file."""
    text = section(text, "cluster-memory", memory_table())
    text = section(text, "cluster-wire", wire_table())
    made = measured_table(json.loads(result.read_text(encoding="utf-8"))) if result.exists() else ""
    return section(text, "cluster-measured", made)


def main() -> int:
    """Rewrite the marked sections of the document."""
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
