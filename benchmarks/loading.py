"""What a core loads: images a second of fashion-lt and hanzi-lt, the latter mapped from a file or drawn as needed.

    python -m benchmarks.loading                    an epoch of each, and one of training on hanzi-lt
    python -m benchmarks.loading --case fashion-lt
    python -m benchmarks.loading --batches 20       of each, and no more

Counted are the seconds that the process computes, in all of its threads, so that a neighbour on the machine changes
little. Memory is that of the process alone (RssAnon): pages of a mapped file are the system's cache, which it takes
back when it needs them. Rates, growth of memory, and the arithmetic of networks go to results/training.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results, training
from benchmarks.measure import quantiles, quiet
from benchmarks.memory import resident
from benchmarks.results import Row
from benchmarks.run import line
from lt_kernels import doctor
from lt_kernels.data import LongTailedData, ResumableLoader, load
from lt_kernels.train.model.networks import ResNet32
from lt_kernels.train.model.resnet import resnet50

OPERATOR = results.LOADING
TRAINED = "hanzi-lt, mapped, trained"
BATCH = 256
BLOCK = 8  # batches of a sample: with one that is read ahead, those before and after it hardly count
WARM = 0.2  # of the batches, at most WARMEST, before memory counts: libraries, fonts and the allocator take theirs
WARMEST = 100
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet32": lambda: ResNet32(1),
    "resnet32 of the recipe hanzi-lt": lambda: ResNet32(1, width=16, blocks=1, pool=4, stride=2),
    "resnet50": lambda: resnet50(1),
}


class Case(NamedTuple):
    """A data set and its options."""

    data: str
    options: dict[str, Any]


CASES = {
    "fashion-lt": Case("fashion-lt", {"imbalance": 100}),
    "hanzi-lt, mapped": Case("hanzi-lt", {}),
    "hanzi-lt, drawn": Case("hanzi-lt", {"keep": False}),
}


class Taken(NamedTuple):
    """CPU seconds of blocks of batches, the images of each, and bytes of private memory after each, of an epoch."""

    seconds: list[float]
    images: list[int]
    private: list[int]

    def rates(self) -> list[float]:
        """Images a second a core, without those of the first blocks."""
        begin = self.warm()
        return [images / seconds for images, seconds in zip(self.images[begin:], self.seconds[begin:], strict=True)]

    def growth(self) -> int:
        """Bytes by which private memory was larger at the end than when all was warm."""
        return self.private[-1] - self.private[self.warm()]

    def warm(self) -> int:
        """How many blocks are none of the measurement."""
        return min(WARMEST // BLOCK, int(WARM * len(self.seconds)))


def epoch(batches: Iterator[int]) -> Taken:
    """What an epoch takes; `batches` does one and says how many images it had."""
    taken = Taken([], [], [])
    with quiet():
        while True:
            start = time.process_time()
            images = sum(itertools.islice(batches, BLOCK))
            if not images:
                return taken
            taken.seconds.append(time.process_time() - start)
            taken.images.append(images)
            taken.private.append(resident("RssAnon"))


def loaded(data: LongTailedData, most: int | None) -> Iterator[int]:
    """The batches of an epoch, as the trainer has them."""
    for inputs, _ in itertools.islice(ResumableLoader(data.train, BATCH), most):
        yield len(inputs)


def trained(most: int | None) -> Iterator[int]:
    """The steps of an epoch of training on hanzi-lt, with a network so small that they are soon over."""
    step = training.steps("la", "hanzi-lt", network="mlp", network_options={"hidden": [32]})["ours"]
    for _ in range(len(step.loader) if most is None else most):
        step()
        yield step.module.config.batch_size


def arithmetic(name: str) -> float:
    """Floating-point operations of an image of 32 x 32, forward and backward, in units of 1e9."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        NETWORKS[name]()(torch.zeros(2, 1, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2 / 1e9


def measured(name: str, most: int | None, around: Mapping[str, Any]) -> Iterator[Row]:
    """Rate and growth of memory over an epoch of a case, or over its first batches."""
    shared = {"operator": OPERATOR, "case": name, "provider": "ours", "mode": "epoch", "dtype": "uint8", **around}
    if name == TRAINED:
        taken = epoch(trained(most))
    else:
        taken = epoch(loaded(load(CASES[name].data, **CASES[name].options), most))
    shared["sizes"] = f"N={BATCH} images={sum(taken.images)}"
    growth = taken.growth() / 2**20
    for metric, unit, points, samples in (
        ("rate", "images/s/core", quantiles(taken.rates()), len(taken.rates())),
        ("growth of memory", "MiB", (growth, growth, growth), 1),
    ):
        p50, p20, p80 = points
        yield Row(metric=metric, unit=unit, p50=p50, p20=p20, p80=p80, samples=samples, **shared)


def asked(around: Mapping[str, Any]) -> Iterator[Row]:
    """The arithmetic that each network asks for an image."""
    for name in NETWORKS:
        value = arithmetic(name)
        shared = {"provider": "torch", "mode": "both", "dtype": "float32", "sizes": "1 x 32 x 32", **around}
        point = {"p50": value, "p20": value, "p80": value, "samples": 1}
        yield Row(OPERATOR, case=name, metric="arithmetic", unit="GFLOP/image", **point, **shared)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases and write their rows."""
    parser = argparse.ArgumentParser("python -m benchmarks.loading", description="Measure what a core loads.")
    parser.add_argument("--case", action="append", choices=[*CASES, TRAINED], help="only this (may be repeated)")
    parser.add_argument("--batches", type=int, help="of each case (without it: an epoch)")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="the results go to its folder training")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    around = doctor.machine("cpu")
    rows = list(asked(around))
    for name in chosen.case or (*CASES, TRAINED):
        rows += measured(name, chosen.batches, around)
    print("\n".join(map(line, rows)))
    results.merge(results.path_of(around, chosen.out / results.TRAINING), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
