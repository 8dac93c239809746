"""An epoch of hanzi-lt with ResNet-50 at 8,142 classes: our losses and the same in plain torch, a block of steps each.

Network, head and loss run under autocast in bfloat16. Where the fonts of hanzi-lt are missing, or the dictionary of its
characters, random bytes stand for the images: as many, of the same shape, with labels of as long a tail. Time does not
depend on what is in an image; the report says which it was.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import eager, registry, results
from benchmarks.gpu.report import Check
from benchmarks.measure import quantiles, quiet
from benchmarks.results import Row, first_line
from lt_kernels.data import ResumableLoader, load
from lt_kernels.data.hanzi.characters import counts_of
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.regularizers import LogitWeightRepulsion
from lt_kernels.train.model.resnet import resnet50

METHODS = {"bs": "BalancedSoftmaxLoss", "bs-lwr": "BalancedSoftmaxLoss", "arcface": "ArcFaceLoss"}
PROVIDERS = ("ours", "eager")
AGREE = 0.02  # of the loss: bfloat16's products, and what plain torch rounds besides
WARM = 10  # steps before any is timed, of both
PARTS = 10  # steps whose loss is timed apart, at the end


class Sizes(NamedTuple):
    """Of an epoch, and the width of the network's first stage."""

    classes: int
    images: int
    batch: int
    width: int
    block: int


FULL, TINY = Sizes(8142, 437_513, 256, 64, 20), Sizes(8, 1_100, 250, 2, 1)


class Pictures(NamedTuple):
    """Images uint8 [N, 1, 32, 32], their classes [N], the counts [C], and what the images are."""

    images: Tensor
    target: Tensor
    counts: Tensor
    what: str


def pictures(sizes: Sizes) -> Pictures:
    """hanzi-lt, or random bytes in its place."""
    why = "the sizes are tiny"
    if sizes != TINY:
        try:
            data = load("hanzi-lt", num_classes=sizes.classes, images=sizes.images)
            return Pictures(*data.train, data.class_counts, "hanzi-lt")
        except (ImportError, OSError, ValueError) as error:
            why = first_line(error)
    counts = torch.from_numpy(counts_of(1 / np.arange(1.0, sizes.classes + 1), sizes.images))
    target = torch.arange(sizes.classes).repeat_interleave(counts)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(target), 1, 32, 32), dtype=torch.uint8, generator=random)
    return Pictures(images, target, counts, f"random bytes in place of hanzi-lt ({why})")


class Training:
    """One provider's training, a step a call."""

    def __init__(
        self, network: nn.Module, head: nn.Module, repulsion: nn.Module | None, data: Pictures, sizes: Sizes
    ) -> None:
        self.network, self.head, self.repulsion = network, head, repulsion
        self.device, self.of_hanzi = next(network.parameters()).device, data.what == "hanzi-lt"
        parameters = [*network.parameters(), *head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=5e-4)
        self.loader = ResumableLoader((data.images, data.target), sizes.batch)
        self.batches = self._batches()
        self.marks: list[float] | None = None

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            for inputs, target in self.loader:
                pixels = inputs.to(self.device, non_blocking=True)
                yield pixels.float().div_(255).sub_(0.16).div_(0.27), target.to(self.device, non_blocking=True)

    def __call__(self) -> Tensor:
        """Take one step and return its loss."""
        inputs, target = next(self.batches)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self.network(inputs)
            self._mark(features)
            loss = self.head(features, target)
            if self.repulsion is not None:
                loss = loss + self.repulsion(self.head.weight)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _mark(self, features: Tensor) -> None:
        """Note when features are there, and when their gradient is, where somebody asks for it."""
        marks = self.marks
        if marks is not None:
            marks.append(self.now())
            features.register_hook(lambda _: marks.append(self.now()))

    def now(self) -> float:
        """Seconds of a clock, when the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def block(self, steps: int) -> tuple[float, float]:
        """Seconds of a step, and the last loss, of several steps that wait for nothing between them."""
        start = self.now()
        for _ in range(steps):
            loss = self()
        return (self.now() - start) / steps, float(loss)

    def share(self) -> float:
        """The loss's share of a step, forward and backward."""
        self.marks = [self.now()]
        self()
        start, features, gradient = self.marks
        end, self.marks = self.now(), None
        return (gradient - features) / (end - start)

    def peak(self) -> float:
        """MiB that a step takes beyond what is held between steps; NaN where the device does not tell."""
        if self.device.type != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def both(method: str, data: Pictures, sizes: Sizes, device: str, seed: int) -> dict[str, Training]:
    """Ours and plain torch's, from the same weights."""
    torch.manual_seed(seed)
    network, name = resnet50(1, width=sizes.width).to(device, memory_format=torch.channels_last), METHODS[method]
    make = CosineHead if registry.of_cosine(name) else LinearHead
    ours = make(network.out_features, sizes.classes, registry.made(name, data.counts)).to(device)
    theirs = eager.Head(copy.deepcopy(ours), method, data.counts).to(device)
    repel = method.endswith("-lwr")
    return {
        "ours": Training(copy.deepcopy(network), ours, LogitWeightRepulsion() if repel else None, data, sizes),
        "eager": Training(network, theirs, eager.Repulsion() if repel else None, data, sizes),
    }


class Figures(NamedTuple):
    """What one provider's training took: seconds a step of each block, the loss's shares of a step, MiB of a step."""

    seconds: list[float]
    shares: list[float]
    peak: float
    last: float


def epoch(check: Check) -> None:
    """A line for each method and provider: an epoch, or as many steps of it as the time allows."""
    sizes = TINY if check.tiny else FULL
    data = pictures(sizes)
    check.say(f"ResNet-50, {sizes.classes:,} classes, {len(data.target):,} images of 32 x 32, {data.what}.  ")
    check.table("method", "losses", "steps", "ms a step (p20 .. p80)", "images/s", "an epoch, s", "loss's share", "MiB")
    for place, method in enumerate(METHODS):
        with check.guarded(f"epoch, {method}"), check.kernels(), quiet():
            training = both(method, data, sizes, check.device, check.seed)
            agree(method, training, check)
            found = trained(training, sizes, check, time.monotonic() + check.left() / (len(METHODS) - place))
            for name, figures in found.items():
                say(method, name, figures, training[name], sizes, check, found["ours"])
        if check.device == "cuda":
            torch.cuda.empty_cache()


def agree(method: str, training: Mapping[str, Training], check: Check) -> None:
    """The first loss is that of plain torch."""
    ours, theirs = (float(training[name]()) for name in PROVIDERS)
    if not abs(ours - theirs) <= AGREE * abs(theirs):
        check.fail(f"epoch, {method}: the first loss is {ours:.5g}, plain torch's {theirs:.5g}")


def trained(training: Mapping[str, Training], sizes: Sizes, check: Check, ends: float) -> dict[str, Figures]:
    """Train with both, in turns, until an epoch or the time is over."""
    for one in training.values():
        one.block(1 if check.tiny else WARM)
    blocks, steps = 0, len(training["ours"].loader)
    found = {name: Figures([], [], 0.0, 0.0) for name in training}
    while blocks * sizes.block < steps and (time.monotonic() < ends or not blocks):
        blocks += 1
        for name, one in training.items():
            seconds, last = one.block(sizes.block)
            found[name].seconds.append(seconds)
            found[name] = found[name]._replace(last=last)
    for name, one in training.items():
        found[name].shares.extend(one.share() for _ in range(2 if check.tiny else PARTS))
        found[name] = found[name]._replace(peak=one.peak())
    return found


def say(method: str, name: str, found: Figures, training: Training, sizes: Sizes, check: Check, ours: Figures) -> None:
    """A line of the report, and rows of the results; a loss that is no number is a failure."""
    steps = len(training.loader)
    done, whole = min(steps, len(found.seconds) * sizes.block), steps * sum(found.seconds) / len(found.seconds)
    times, share = quantiles(found.seconds, 1e-3), quantiles(found.shares)
    spread = "{:.4g} ({:.4g} .. {:.4g})".format(*times)
    rate, part = f"{1e3 * sizes.batch / times[0]:,.0f}", f"{100 * share[0]:.2g} %"
    check.row(method, name, f"{done} of {steps}", spread, rate, f"{whole:.4g}", part, f"{found.peak:,.0f}")
    if not math.isfinite(found.last):
        check.fail(f"epoch, {method}: the loss of {name} is {found.last} after {done} steps")
    ratio = quantiles([b / a for a, b in zip(ours.seconds, found.seconds, strict=True)])
    size = f"resnet50 N={sizes.batch} C={sizes.classes} d={training.network.out_features}"
    case = f"hanzi-lt {method}" if training.of_hanzi else f"random-images {method}"
    shared = {"operator": results.TRAINING, "case": case, "provider": name, "dtype": "bfloat16", "sizes": size}
    rows = [
        Row(mode=mode, metric=metric, unit=unit, p50=p[0], p20=p[1], p80=p[2], samples=count, **shared, **check.around)
        for mode, metric, unit, p, count in (
            ("step", "time", "ms", times, len(found.seconds)),
            ("step", "ratio", "of ours", ratio, len(found.seconds)),
            ("epoch", "time", "s", (whole, whole, whole), 1),
            ("loss", "share", "of a step", share, len(found.shares)),
            ("step", "peak extra memory", "MiB", (found.peak, found.peak, found.peak), 1),
        )
        if math.isfinite(p[0])
    ]
    results.merge(results.path_of(check.around, check.out / results.TRAINING), rows)
