"""Training at speed: steps of `lt-kernels train` with our heads, and with the same losses in plain torch.

Both start from the same weights and see the same batches. A step is what the trainer does: a batch from the loader,
forward, backward, and the optimizer; its losses and gradients are compared before its time counts.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import eager, memory, results
from benchmarks.measure import quantiles, quiet
from benchmarks.results import Row
from benchmarks.run import line
from lt_kernels import doctor
from lt_kernels.data import LongTailedData, ResumableLoader
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.recipes import find_recipe, read_config
from lt_kernels.train.run.build import build_module, load_data

OPERATOR, DATA = results.TRAINING, "stdlib-words"
METHODS = ("ce", "bs", "dbm-bs", "bs-lwr")
PROVIDERS = ("ours", "eager")
WARM = 3  # steps before any is timed
BLOCK = 5  # steps of one provider between two of the other's
WORST = 1e-4  # of the largest entry: what float32 losses and gradients may differ by


class EagerHead(nn.Module):
    """The head's parameters under the loss as it is written in plain torch, over all logits."""

    def __init__(self, head: Any, method: str, class_counts: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, getattr(head, "bias", None)
        self.cosine, self.counts = method.startswith("dbm"), class_counts.double()
        self.offset = None if method == "ce" else (self.counts / self.counts.sum()).log().float()

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss of features [N, d]."""
        if not self.cosine:
            logits = F.linear(features, self.weight, self.bias)
            return F.cross_entropy(logits if self.offset is None else logits + self.offset, target)
        cosine = F.linear(F.normalize(features), F.normalize(self.weight))
        return eager.dbm(cosine, target, self.counts, offset=self.offset)


class EagerRepulsion(nn.Module):
    """All C x C cosines."""

    def forward(self, linear_weight: Tensor) -> Tensor:
        """R of class weights [C, d]."""
        return eager.logit_weight_repulsion(linear_weight)


class Step:
    """One provider's training, a step a call."""

    def __init__(self, module: Classifier, data: LongTailedData) -> None:
        self.module, self.optimizer = module, module.configure_optimizers()
        self.loader = ResumableLoader(data.train, module.config.batch_size, seed=module.config.seed)
        self.batches = self._batches()
        module.apply_epoch(0)

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            yield from self.loader

    def __call__(self) -> Tensor:
        """Take one step and return its loss."""
        self.optimizer.zero_grad()
        inputs, target = next(self.batches)
        loss = self.module.training_step((inputs, target), 0)["loss"]
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def steps(method: str, data_name: str = DATA) -> dict[str, Step]:
    """Ours and the eager form of a method, with the settings of the data's recipe."""
    config = read_config(find_recipe(data_name)).replace(method=method, augment="none")  # both see the same samples
    data = load_data(config)
    ours = build_module(config, data)
    theirs = copy.deepcopy(ours)
    theirs.head = EagerHead(theirs.head, method, data.class_counts)
    theirs.regularizer = None if ours.regularizer is None else EagerRepulsion()
    return {"ours": Step(ours, data), "eager": Step(theirs, data)}


def differs(both: Mapping[str, Step]) -> float:
    """How far loss and gradients of the next step are apart, as a share of the largest entry."""
    losses = {name: step() for name, step in both.items()}
    worst = float((losses["ours"] - losses["eager"]).abs() / losses["eager"].abs())
    theirs = dict(both["eager"].module.named_parameters())
    for name, parameter in both["ours"].module.named_parameters():
        mine, other = parameter.grad, theirs[name].grad
        assert mine is not None, name
        assert other is not None, name
        worst = max(worst, float((mine - other).abs().max() / other.abs().max()))
    return worst


def timed(both: Mapping[str, Step], seconds: float) -> dict[str, list[float]]:
    """Seconds of each provider's steps, in turns of a block each, until each has had its seconds."""
    taken: dict[str, list[float]] = {name: [] for name in both}
    with quiet():
        for _ in range(WARM):
            for step in both.values():
                step()
        while any(sum(times) < seconds for times in taken.values()):
            for name, step in both.items():
                for _ in range(BLOCK if sum(taken[name]) < seconds else 0):
                    start = time.perf_counter()
                    step()
                    taken[name].append(time.perf_counter() - start)
    return taken


def measured(method: str, data_name: str, seconds: float, around: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one method: how far the two are apart, times of a step, memory of one."""
    both = steps(method, data_name)
    module = both["ours"].module
    classes, size = module.head.weight.shape
    sizes = f"N={module.config.batch_size} C={classes} d={size}"
    shared = {"operator": OPERATOR, "case": method, "mode": "step", "dtype": "float32", "sizes": sizes, **around}

    def row(provider: str, metric: str, unit: str, points: Sequence[float], samples: int) -> Row:
        p50, p20, p80 = points
        return Row(provider=provider, metric=metric, unit=unit, p50=p50, p20=p20, p80=p80, samples=samples, **shared)

    worst = differs(both)
    yield row("ours", "error" if worst <= WORST else "wrong", "relative", 3 * [worst], 1)
    if worst > WORST:
        return
    for name, taken in timed(both, seconds).items():
        yield row(name, "time", "ms", quantiles(taken, unit=1e-3), len(taken))
    for name in both:
        peak = peak_extra(method, data_name, name, around["threads"])
        if peak is not None:
            yield row(name, "peak extra memory", "MiB", 3 * [peak / 2**20], 1)


def peak_extra(method: str, data_name: str, provider: str, threads: int) -> int | None:
    """Bytes that a step takes beyond parameters, momentum and data, in a fresh process; None where nobody tells."""
    words = ["--peak", provider, "--method", method, "--data", data_name, "--threads", str(threads)]
    return memory.fresh("benchmarks.training", *words)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.training", description="Measure steps of training.")
    parser.add_argument("--method", action="append", choices=METHODS, help="only this method (may be repeated)")
    parser.add_argument("--data", default=DATA, help="the data set, by its recipe")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each provider's steps")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results file")
    parser.add_argument("--peak", choices=PROVIDERS, help=argparse.SUPPRESS)  # one measurement, in this process
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the methods and write their rows; 1 if ours was wrong."""
    chosen = arguments(argv)
    torch.set_num_threads(chosen.threads)
    methods = chosen.method or METHODS
    if chosen.peak:
        step = steps(methods[0], chosen.data)[chosen.peak]
        for _ in range(WARM):
            step()
        peak = memory.peak_of(step)
        print("unknown" if peak is None else peak)
        return 0
    around, ok = doctor.machine("cpu"), True
    for method in methods:
        rows = list(measured(method, chosen.data, chosen.seconds, around))
        print("\n".join([f"{OPERATOR} {method}", *map(line, rows)]), flush=True)
        ok &= all(row.metric != "wrong" for row in rows)
        results.merge(results.path_of(around, chosen.out), rows)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
