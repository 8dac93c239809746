"""What a device can do at most, what each case has to do at least, and how near ours comes; then the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from benchmarks import measure, results
from benchmarks.cases import Case, cases
from benchmarks.gpu.report import Check
from benchmarks.results import DEVICE, Row

BF16, FP32 = torch.bfloat16, torch.float32
LINEAR, COSINE = "linear_cross_entropy", "cosine_margin_cross_entropy"
REPULSION = "logit_weight_repulsion"


class Work(NamedTuple):
    """The least that a forward and backward has to do: bytes read and written, and operations of matrix products."""

    bytes: float
    flops: float


def work(case: Case) -> Work:
    """Each input read once and each gradient written once; every product made once.

    Of logits, one read and one write. From features, three products, and no logits at all. Of the C x C cosines one
    half, since they are symmetric; the pairs above the threshold, a hundredth, are left out.
    """
    n, c, d, size = case.rows, case.classes, case.depth, case.dtype.itemsize
    if case.operator == REPULSION:
        return Work(2 * c * d * size, c * c * d)
    if d:
        return Work(2 * (n + c) * d * size, 6 * n * c * d)
    return Work(2 * n * c * size, 0)


class Rates(NamedTuple):
    """What the device was measured at: a copy in bytes read and written a second, products in operations a second."""

    copy: float
    products: dict[str, float]

    def floor(self, case: Case) -> float:
        """Seconds in which nobody can be done."""
        least = work(case)
        return max(least.bytes / self.copy, least.flops / self.products[case.dtype_name])


def measured_rates(check: Check) -> Rates:
    """A copy of gigabytes, and a product of random matrices in each dtype."""
    bytes, side = (2**22, 128) if check.tiny else (2**32, 8_192)
    source = torch.randint(127, (bytes,), dtype=torch.int8, device=check.device)
    target = torch.empty_like(source)
    copy = 2 * bytes / _median(lambda: target.copy_(source), check.device)
    products = {}
    for dtype in (BF16, FP32):
        left, right = (torch.randn(side, side, device=check.device).to(dtype) for _ in range(2))
        seconds = _median(lambda left=left, right=right: left @ right, check.device)
        products[str(dtype)[6:]] = 2 * side**3 / seconds
    return Rates(copy, products)


def _median(run: Callable[[], object], device: str) -> float:
    samples = measure.Samples()
    provider = measure.Provider("rate", run, lambda _: [])
    for _ in range(13):
        measure.once(provider, device, samples)
    return measure.quantiles(samples.forward[3:])[0]


def rows_of(rates: Rates, around: dict[str, Any]) -> list[Row]:
    """The rates as the results file keeps them."""

    def row(name: str, dtype: str, metric: str, unit: str, value: float) -> Row:
        return Row(DEVICE, name, "torch", "both", dtype=dtype, sizes="", metric=metric, unit=unit, p50=value, p20=value,
                   p80=value, samples=10, **around)  # fmt: skip

    copied = row("copy", "int8", "bandwidth", "GB/s", rates.copy / 1e9)
    return [copied, *(row("product", dtype, "rate", "TFLOP/s", r / 1e12) for dtype, r in rates.products.items())]


@dataclass
class Figures:
    """The measured times, in seconds, with the rates of the device that they were measured on."""

    rates: Rates
    rows: Sequence[Row]
    tiny: bool = False

    def case(self, operator: str, name: str, dtype: torch.dtype) -> Case:
        """The case of that name, at the size at which it was run."""
        (found,) = (c for c in cases("cuda") if (c.operator, c.name, c.dtype) == (operator, name, dtype))
        return found.tiny() if self.tiny else found

    def mode(self, case: Case, mode: str, provider: str = "ours", metric: str = "time") -> float | None:
        """A median: seconds for times, MiB for memory."""
        wanted = (case.operator, case.name, case.dtype_name, case.sizes, provider, mode, metric)
        for r in self.rows:
            if (r.operator, r.case, r.dtype, r.sizes, r.provider, r.mode, r.metric) == wanted:
                return r.p50 / 1e3 if metric == "time" else r.p50
        return None

    def best(self, case: Case, provider: str = "ours") -> float | None:
        """Forward and backward: by plain calls or, where that is less, as the replay of a graph."""
        times = [self.mode(case, mode, provider) for mode in ("both", "graph")]
        return min((seconds for seconds in times if seconds is not None), default=None)

    def bandwidth(self, case: Case) -> float | None:
        """Which share of the copy bandwidth the least bytes of the case make in the time measured."""
        seconds = self.best(case)
        return None if seconds is None else work(case).bytes / seconds / self.rates.copy


Judged = tuple[bool | None, str]  # met or not (None: not measured), and what was measured
PEERS = ("cce", "cce-exact", "liger")


@dataclass(frozen=True)
class Goal:
    """A goal of the project for one case; `judge` gets the figures and the case."""

    operator: str
    name: str
    dtype: torch.dtype
    text: str
    judge: Callable[[Figures, Case], Judged]

    def verdict(self, figures: Figures) -> Judged:
        """Whether it is met, and the figures that say so."""
        return self.judge(figures, figures.case(self.operator, self.name, self.dtype))


def within(milliseconds: float) -> Callable[[Figures, Case], Judged]:
    """At most so long."""

    def judge(figures: Figures, case: Case) -> Judged:
        seconds = figures.best(case)
        if seconds is None:
            return None, ""
        times = seconds / figures.rates.floor(case)
        return seconds * 1e3 <= milliseconds, f"{seconds * 1e3:.3g} ms, {times:.2f}x the floor"

    return judge


def share_of_copy(least: float) -> Callable[[Figures, Case], Judged]:
    """At least this share of the copy bandwidth over one read and one write."""

    def judge(figures: Figures, case: Case) -> Judged:
        share = figures.bandwidth(case)
        return (None, "") if share is None else (share >= least, f"{share:.0%}")

    return judge


def faster_than_peers(figures: Figures, case: Case) -> Judged:
    """Faster than every peer that was measured at the linear operator of that shape."""
    ours, plain = figures.best(case), replace(case, operator=LINEAR)
    theirs = {peer: seconds for peer in PEERS if (seconds := figures.best(plain, peer)) is not None}
    if ours is None or not theirs:
        return None, "" if ours is None else f"{ours * 1e3:.3g} ms, no peer measured"
    words = ", ".join(f"{peer} {seconds * 1e3:.3g}" for peer, seconds in theirs.items())
    places = {"ours": case, **dict.fromkeys(theirs, plain)}
    memory = {name: figures.mode(place, "both", name, "peak extra memory") for name, place in places.items()}
    held = ", ".join(f"{name} {mib:.0f}" for name, mib in memory.items() if mib is not None)
    return ours < min(theirs.values()), f"{ours * 1e3:.3g} ms; {words}; memory, MiB: {held}"


GOALS = (
    Goal("offset_cross_entropy", "vocab-4096", BF16, ">= 90 % of the copy bandwidth", share_of_copy(0.9)),
    Goal(COSINE, "faces", BF16, "<= 30 ms", within(30)),
    Goal(LINEAR, "faces", BF16, "<= 30 ms", within(30)),
    Goal(LINEAR, "vocab", BF16, "faster than CCE and Liger", faster_than_peers),
    Goal(COSINE, "vocab", BF16, "faster than CCE and Liger, which have no margin", faster_than_peers),
    Goal(LINEAR, "inat", BF16, "<= 0.15 ms", within(0.15)),
    Goal(COSINE, "inat", BF16, "<= 0.15 ms", within(0.15)),
    Goal(REPULSION, "lwr-inat-sparse", FP32, "<= 0.5 ms, 10 active pairs a class", within(0.5)),
    Goal(REPULSION, "lwr-100k-sparse", FP32, "<= 15 ms, 10 active pairs a class", within(15)),
    Goal(REPULSION, "lwr-inat", FP32, "<= 1.5 ms, 1 % of pairs active", within(1.5)),
    Goal(REPULSION, "lwr-100k", FP32, "<= 100 ms, 1 % of pairs active", within(100)),
)


def roofline(check: Check) -> None:
    """The device's rates, the table of all cases that the results file holds, and the goals."""
    path = results.path_of(check.around, check.out)
    rates = measured_rates(check)
    results.merge(path, rows_of(rates, check.around))
    products = ", ".join(f"{dtype} {rate / 1e12:.1f} TFLOP/s" for dtype, rate in rates.products.items())
    check.say(f"Copy {rates.copy / 1e9:,.0f} GB/s (read and written); products {products}. Times from {path.name}.")
    figures = Figures(rates, results.read(path), check.tiny)
    check.table("operator", "case", "ms", "graph, ms", "least MB", "least GFLOP", "floor, ms", "of copy", "of products")
    for cells in table(figures, cases("cuda")):
        check.row(*cells)
    check.table("goal", "case", "met", "measured")
    for goal in GOALS:
        met, words = goal.verdict(figures)
        answer = {True: "yes", False: "no", None: "not measured"}[met]
        check.row(f"{goal.operator} {goal.text}", f"{goal.name} {str(goal.dtype)[6:]}", answer, words)


def table(figures: Figures, every: Iterable[Case]) -> Iterable[list[str]]:
    """A line for each case that was measured: time, least work, and the shares of what the device can do."""
    for case in (case.tiny() if figures.tiny else case for case in every):
        both, graph, best = figures.mode(case, "both"), figures.mode(case, "graph"), figures.best(case)
        if best is None:
            continue
        least, floor = work(case), figures.rates.floor(case)
        rate = least.flops / best / figures.rates.products[case.dtype_name]
        yield [
            case.operator,
            f"{case.name} {case.dtype_name} {case.sizes}",
            *("" if seconds is None else f"{seconds * 1e3:.4g}" for seconds in (both, graph)),
            f"{least.bytes / 1e6:,.1f}",
            f"{least.flops / 1e9:,.1f}",
            f"{floor * 1e3:.4g}",
            f"{least.bytes / best / figures.rates.copy:.0%}",
            f"{rate:.0%}",
        ]
