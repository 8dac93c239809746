"""Times of several providers, taken in turns in one process, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.providers import Provider

# Fewer say nothing about a median; more say nothing new.
FEWEST, MOST = 3, 1_000
# After this long on one provider the fewest samples have to do (a competitor may take minutes).
PATIENCE = 15.0


@dataclass
class Samples:
    """Seconds of forward and backward of one provider, one entry a round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def both(self) -> list[float]:
        """Forward and backward of the same round together."""
        return [first + second for first, second in zip(self.forward, self.backward)]

    def modes(self) -> Iterator[tuple[str, list[float]]]:
        """("forward", seconds), ("backward", ...) where there is one, ("both", ...)."""
        yield "forward", self.forward
        yield "backward", self.backward
        yield "both", self.both


def quantiles(seconds: Sequence[float], unit: float = 1.0) -> tuple[float, float, float]:
    """The median, the 20th and the 80th percentile, in units of `unit` seconds."""
    points = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
    p50, p20, p80 = (points / unit).tolist()
    return p50, p20, p80


def synchronize(device: str) -> None:
    """Wait for the device, where it runs behind the host."""
    if device != "cpu":
        torch.cuda.synchronize()


def once(provider: Provider, device: str, into: Samples) -> float:
    """One forward and backward; their times are added to `into` and their sum is returned, in seconds."""
    synchronize(device)
    start = time.perf_counter()
    loss = provider.forward()
    synchronize(device)
    middle = time.perf_counter()
    gradients = provider.backward(loss)
    synchronize(device)
    end = time.perf_counter()
    del loss, gradients
    into.forward.append(middle - start)
    into.backward.append(end - middle)
    return end - start


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection in the middle of a sample."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleaved(providers: Sequence[Provider], device: str, seconds: float) -> dict[str, Samples]:
    """Samples of every provider, about `seconds` of work each: one sample of each in turn, in an order that rotates."""
    samples, spent = {}, dict.fromkeys((provider.name for provider in providers), 0.0)
    for provider in providers:  # the warm-up: caches, compilation, thread pools
        if provider.name == "compile":
            once(provider, device, Samples())  # compiling is not part of a step
        first = Samples()
        slow = once(provider, device, first) > PATIENCE
        samples[provider.name] = first if slow else Samples()  # beside minutes of work a warm-up does not show
        spent[provider.name] = PATIENCE if slow else 0.0
    with quiet():
        turn, active = 0, [provider for provider in providers if spent[provider.name] < PATIENCE]
        while active:
            for provider in active[turn % len(active) :] + active[: turn % len(active)]:
                spent[provider.name] += once(provider, device, samples[provider.name])
            turn += 1
            active = [p for p in active if turn < MOST and not _enough(turn, spent[p.name], seconds)]
    return samples


def _enough(turn: int, spent: float, seconds: float) -> bool:
    return spent >= PATIENCE or (turn >= FEWEST and spent >= seconds)
