"""Training at speed: steps of `lt-kernels train` with our heads, and with the same losses in plain torch.

Both start from the same weights and see the same batches. A step is what the trainer does: a batch from the loader,
forward, backward, and the optimizer; its losses and gradients are compared before its time counts, so that all is in
float32, whatever the recipe's precision is. With one thread the seconds are those that the process computes, so that
others on the machine change little. An epoch is a pass over all images, whether or not the recipe calls a part one.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
METHODS = ("ce", "bs", "dbm-bs", "bs-lwr", "la-lwr", "arcface")
USUAL = METHODS[:4]  # where none is named
PROVIDERS = ("ours", "eager")
WARM = 3  # steps before any is timed
BLOCK = 5  # steps of one provider between two of the other's
SLOW = 0.1  # seconds of a step from which on they follow each other one by one
WORST = 1e-4  # of the largest entry: what float32 losses and gradients may differ by


class Step:
    """One provider's training, a step a call."""

    def __init__(self, module: Classifier, data: LongTailedData) -> None:
        self.module, self.optimizer = module, module.configure_optimizers()
        self.device = module.head.weight.device
        self.loader = ResumableLoader(data.train, module.config.batch_size, seed=module.config.seed)
        self.batches = self._batches()
        module.apply_epoch(0)

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            for batch in self.loader:
                yield tuple(part.to(self.device) for part in batch)

    def __call__(self) -> Tensor:
        """Take one step and return its loss."""
        self.optimizer.zero_grad()
        inputs, target = next(self.batches)
        loss = self.module.training_step((inputs, target), 0)["loss"]
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def in_parts(self) -> tuple[float, float]:
        """Seconds of the loss within a step, forward and backward, and of the step."""
        marks = [self.now()]
        self.module.watch = lambda _, features, __: self._mark(marks, features)
        self.optimizer.zero_grad()
        self.module.training_step(next(self.batches), 0)["loss"].backward()
        self.optimizer.step()
        marks.append(self.now())
        self.module.watch = None
        start, features, gradient, end = marks
        return gradient - features, end - start

    def _mark(self, marks: list[float], features: Tensor) -> None:
        """Note when the features are there, and in the backward pass when their gradient is."""
        features.register_hook(lambda _: marks.append(self.now()))
        marks.append(self.now())

    def now(self) -> float:
        """Seconds of a clock, when the device is done; of one thread on a CPU, those that the process computes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    def loss_alone(self, features: Tensor, target: Tensor) -> None:
        """What of a step is the loss, with the repulsion: forward, and backward to class weights and features."""
        self.optimizer.zero_grad()
        loss = self.module.active_head(features, target)
        if self.module.regularizer is not None:
            loss = loss + self.module.strength * self.module.regularizer(self.module.head.weight)
        loss.backward()

    def features(self) -> tuple[Tensor, Tensor]:
        """Features of the next batch, as leaves, and its targets."""
        inputs, target = next(self.batches)
        with torch.no_grad():
            features = self.module.features(inputs)
        return features.requires_grad_(), target


def steps(method: str, data_name: str = DATA, device: str = "cpu", **changes: Any) -> dict[str, Step]:
    """Ours and the eager form of a method, with the settings of the data's recipe and changes of them."""
    config = read_config(find_recipe(data_name)).replace(method=method, augment="none", **changes)  # the same samples
    data = load_data(config)
    ours = build_module(config, data)
    theirs = copy.deepcopy(ours)
    theirs.head = eager.Head(theirs.head, method, data.class_counts)
    theirs.regularizer = None if ours.regularizer is None else eager.Repulsion()
    return {"ours": Step(ours.to(device), data), "eager": Step(theirs.to(device), data)}


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
    """Seconds of each provider's steps, as many of each, in turns of a block, until each has had its seconds."""
    taken: dict[str, list[float]] = {name: [] for name in both}

    def once(name: str, step: Step) -> None:
        start = step.now()
        step()
        taken[name].append(step.now() - start)

    with quiet():
        for _ in range(WARM):
            for name, step in both.items():
                once(name, step)
        block = 1 if max(times[-1] for times in taken.values()) > SLOW else BLOCK
        for times in taken.values():
            times.clear()
        while any(sum(times) < seconds for times in taken.values()):
            for name, step in both.items():
                for _ in range(block):
                    once(name, step)
    return taken


def ratios(taken: Mapping[str, Sequence[float]]) -> list[float]:
    """How many times as long as ours the eager steps took, for BLOCK of each that lie side by side."""
    sums = {name: [sum(taken[name][k : k + BLOCK]) for k in range(0, len(taken[name]), BLOCK)] for name in PROVIDERS}
    return [theirs / ours for ours, theirs in zip(sums["ours"], sums["eager"], strict=True)]


def in_parts(both: Mapping[str, Step], seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the loss and of the step, of steps in turns, until each provider has had its seconds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
    with quiet():
        while any(sum(whole for _, whole in parts) < seconds for parts in taken.values()):
            for name, step in both.items():
                taken[name].append(step.in_parts())
    return taken


def measured(method: str, data_name: str, seconds: float, around: Mapping[str, Any], device: str) -> Iterator[Row]:
    """The rows of one method: how far the two are apart, times of a step and an epoch, the loss's share, and memory."""
    both = steps(method, data_name, device)
    module, loader = both["ours"].module, both["ours"].loader
    classes, size = module.head.weight.shape
    sizes = f"N={module.config.batch_size} C={classes} d={size}"
    shared = {"operator": OPERATOR, "case": f"{data_name} {method}", "dtype": "float32", "sizes": sizes, **around}

    def row(provider: str, mode: str, metric: str, unit: str, points: Sequence[float], samples: int) -> Row:
        figure = {"p50": points[0], "p20": points[1], "p80": points[2], "samples": samples}
        return Row(provider=provider, mode=mode, metric=metric, unit=unit, **figure, **shared)

    worst = differs(both)
    yield row("ours", "step", "error" if worst <= WORST else "wrong", "relative", 3 * [worst], 1)
    if worst > WORST:
        return
    steps_of = timed(both, seconds)
    yield row("eager", "step", "ratio", "of ours", quantiles(ratios(steps_of)), len(ratios(steps_of)))
    for name, taken in steps_of.items():
        yield row(name, "step", "time", "ms", quantiles(taken, 1e-3), len(taken))
        yield row(name, "epoch", "time", "s", [len(loader) * point for point in quantiles(taken)], len(taken))
    for name, parts in in_parts(both, seconds / 2).items():
        yield row(name, "loss", "share", "of a step", quantiles([part / whole for part, whole in parts]), len(parts))
    for name, mode in itertools.product(both, ("step", "loss")):
        words = ["--peak", name, "--of", mode, "--method", method, "--data", data_name, "--device", device]
        peak = memory.fresh("benchmarks.training", *words, "--threads", str(around["threads"]))
        if peak is not None:
            yield row(name, mode, "peak extra memory", "MiB", 3 * [peak / 2**20], 1)


def peak_here(method: str, data_name: str, provider: str, mode: str, device: str) -> int | None:
    """Bytes that a step, or its loss alone, takes beyond parameters, momentum and data; None where nobody tells."""
    both = steps(method, data_name, device)
    for _ in range(WARM):
        both[provider]()
    step = both[provider]
    work = step if mode == "step" else functools.partial(step.loss_alone, *step.features())
    if device == "cpu":
        return memory.peak_of(work)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.training", description="Measure steps of training.")
    parser.add_argument("--method", action="append", choices=METHODS, help="only this method (may be repeated)")
    parser.add_argument("--data", default=DATA, help="the data set, by its recipe")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of each provider's steps; half of it of its losses"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where network and loss are")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="the results go to its folder training")
    parser.add_argument("--peak", choices=PROVIDERS, help=argparse.SUPPRESS)  # one measurement, in this process
    parser.add_argument("--of", choices=("step", "loss"), default="step", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the methods and write their rows; 1 if ours was wrong."""
    chosen = arguments(argv)
    torch.set_num_threads(chosen.threads)
    methods = chosen.method or USUAL
    if chosen.peak:
        peak = peak_here(methods[0], chosen.data, chosen.peak, chosen.of, chosen.device)
        print("unknown" if peak is None else peak)
        return 0
    around, ok = doctor.machine(chosen.device), True
    for method in methods:
        rows = list(measured(method, chosen.data, chosen.seconds, around, chosen.device))
        print("\n".join([f"{OPERATOR} {chosen.data} {method}", *map(line, rows)]), flush=True)
        ok &= all(row.metric != "wrong" for row in rows)
        results.merge(results.path_of(around, chosen.out / results.TRAINING), rows)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
