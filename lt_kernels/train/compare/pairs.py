"""Each method beside the one that it builds on, seed by seed: the same network and order of samples, so paired."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lt_kernels.train.compare.tables import Spread, spread
from lt_kernels.train.methods.method import REPULSION_SUFFIX
from lt_kernels.train.output.cells import csv_text

Results = Mapping[str, Sequence[Mapping[str, Any]]]
HEADINGS = ("method", "beside", "difference of all", "95 % from", "95 % to", "seeds above")
# What a method adds something to, where that is not plain cross-entropy.
BUILT_ON: Mapping[str, str] = {
    "dbm-bs": "bs",
    "dbm-drw": "ce-drw",
    "dbm-bcl": "bcl",
    "dbm-gml": "gml",
    "dbm-ncl": "ncl",
    "ldam-drw": "ldam",
    "lade": "bs",
    "bcl": "bs",
    "gml": "bs",
    "ncl": "bs",
    "arb": "bs",
    "arb-batch": "arb",
    "arb-mixup": "arb",
    "arb-batch-mixup": "arb-batch",
    "crt-mixup": "ce-mixup",
    "lws-mixup": "ce-mixup",
    "mislas": "ce-mixup",
    "focal-drw": "focal",
    "wvn-rs": "ce-rs",
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """The mean class accuracy of `method` less that of `beside`, in points over the seeds."""

    method: str
    beside: str
    difference: Spread
    above: int
    seeds: int

    def interval(self) -> tuple[float, float]:
        """Where the mean difference lies with 95 % confidence, by Student's t; NaN for a single seed."""
        if self.difference.deviation is None:
            return math.nan, math.nan
        from scipy.special import stdtrit  # scikit-learn brings it along

        half = float(stdtrit(self.seeds - 1, 0.975)) * self.difference.deviation / math.sqrt(self.seeds)
        return self.difference.mean - half, self.difference.mean + half

    def cells(self) -> list[str]:
        """One row as text."""
        sign = "+" if self.difference.mean >= 0 else ""
        ends = ["" if math.isnan(end) else f"{end:+.1f}" for end in self.interval()]
        return [self.method, self.beside, sign + self.difference.text(), *ends, f"{self.above} of {self.seeds}"]


def beside(name: str, results: Results) -> str | None:
    """The method of the comparison that `name` is set against: what it builds on, else cross-entropy, else none."""
    method = str(results[name][0]["config"]["method"])
    if name != method:  # a variant
        candidates = [method]
    elif method.endswith(REPULSION_SUFFIX):
        candidates = [method.removesuffix(REPULSION_SUFFIX)]
    else:
        candidates = [BUILT_ON[method]] if method in BUILT_ON else []
    return next((other for other in [*candidates, "ce"] if other in results and other != name), None)


def paired(results: Results) -> list[Pair]:
    """Every method that has something to stand beside."""
    pairs: list[Pair] = []
    for name in results:
        other = beside(name, results)
        pairs += [] if other is None else [pair_of(name, other, results)]
    return pairs


def pair_of(name: str, other: str, results: Results) -> Pair:
    """One method beside another; runs are matched by their seeds."""
    base = {run["config"]["seed"]: run["accuracy"]["all"] for run in results[other]}
    gains = [run["accuracy"]["all"] - base[run["config"]["seed"]] for run in results[name]]
    return Pair(name, other, spread(gains), sum(gain > 0 for gain in gains), len(gains))


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """The table as CSV."""
    return csv_text([HEADINGS, *(pair.cells() for pair in pairs)])
