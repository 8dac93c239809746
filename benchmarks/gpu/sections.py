"""What the check of a GPU consists of: its sections by name, and which of them run where."""

from __future__ import annotations

from typing import NamedTuple

PARTS = ("rows", "linear", "cosine", "repulsion", "lade", "losses")
PRODUCTS = ("linear", "cosine", "repulsion")  # the parts in which the precision of products shows
KINDS = ("bfloat16", "float32", "tf32", "float16", "float64")


class Section(NamedTuple):
    """A section of the check; those that time nothing may run side by side."""

    title: str
    alone: bool = False


class Part(NamedTuple):
    """Sections for one command: all of them within `minutes`, of which the benchmark's cases may take `bench`."""

    sections: tuple[str, ...]
    minutes: float
    bench: float = 0.0


SECTIONS = {
    "variants": Section("Variants", alone=True),
    **{part: Section(f"Correctness: {part}") for part in PARTS},
    "determinism": Section("Determinism"),
    "graphs": Section("Graphs and host synchronisation"),
    "compile": Section("torch.compile"),
    "huge": Section("Huge sizes"),
    "bench": Section("Benchmark", alone=True),
    "roofline": Section("Roofline and goals", alone=True),
    "profile": Section("Profile", alone=True),
    "epoch": Section("Training: an epoch", alone=True),
    "sanitizer": Section("Memory and race checks", alone=True),
    "smoke": Section("Smoke"),  # what the sanitizer runs
}
# On a GPU each part of the correctness is split by dtype: the time goes into compiling kernels, which many cores share.
SPLIT = {
    f"{part}-{kind}": Section(f"Correctness: {part}, {kind}")
    for part in PARTS
    for kind in KINDS
    if kind != "tf32" or part in PRODUCTS
}
EVERY = SPLIT | SECTIONS
ALL = ("variants", "correctness", "determinism", "graphs", "compile", "huge", "bench", "roofline", "profile",
       "epoch", "sanitizer")  # fmt: skip
INTERPRETED = ("variants", *PARTS, "determinism", "compile", "huge", "bench", "roofline", "epoch")
# Four commands of less than ten minutes each, the starts of the machine and of torch included.
COMMANDS = {
    "variants": Part(("variants",), 4.0),
    "correctness": Part(("correctness", "determinism", "graphs", "compile", "huge"), 9.0),
    "bench": Part(("bench", "roofline", "profile"), 9.0, bench=6.5),
    "epoch": Part(("epoch",), 9.0, bench=6.0),
}
