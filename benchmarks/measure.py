"""Times of several providers, taken in turns in one process, so that what disturbs one disturbs all."""

from __future__ import annotations

import functools
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.providers import Provider

# Fewer say nothing about a median; more say nothing new.
FEWEST, MOST = 3, 1_000
# After this long on one provider the fewest samples have to do (a competitor may take minutes).
PATIENCE = 15.0
SCRATCH = 256 * 2**20  # bytes, several times the last cache of a GPU


@dataclass
class Samples:
    """Seconds of forward and backward of one provider, one entry a round; and of replays of a graph of both."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)

    @property
    def both(self) -> list[float]:
        """Forward and backward of the same round together."""
        return [first + second for first, second in zip(self.forward, self.backward)]

    def modes(self) -> Iterator[tuple[str, list[float]]]:
        """("forward", seconds), ("backward", ...), ("both", ...), and ("graph", ...) where there is one."""
        yield "forward", self.forward
        yield "backward", self.backward
        yield "both", self.both
        if self.graph:
            yield "graph", self.graph


def quantiles(seconds: Sequence[float], unit: float = 1.0) -> tuple[float, float, float]:
    """The median, the 20th and the 80th percentile, in units of `unit` seconds."""
    points = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
    p50, p20, p80 = (points / unit).tolist()
    return p50, p20, p80


def once(provider: Provider, device: str, into: Samples) -> float:
    """One forward and backward; their times are added to `into` and their sum is returned, in seconds."""
    first, second = _on_host(provider) if device == "cpu" else _on_device(provider)
    into.forward.append(first)
    into.backward.append(second)
    return first + second


def _on_host(provider: Provider) -> tuple[float, float]:
    start = time.perf_counter()
    loss = provider.forward()
    middle = time.perf_counter()
    gradients = provider.backward(loss)
    end = time.perf_counter()
    del loss, gradients
    return middle - start, end - middle


def _on_device(provider: Provider) -> tuple[float, float]:
    """By the device's own clock, with nothing of earlier rounds in its cache."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    flush()
    marks[0].record()
    loss = provider.forward()
    marks[1].record()
    gradients = provider.backward(loss)
    marks[2].record()
    marks[2].synchronize()
    del loss, gradients
    return marks[0].elapsed_time(marks[1]) / 1e3, marks[1].elapsed_time(marks[2]) / 1e3


@functools.cache
def _scratch() -> Tensor:
    return torch.empty(SCRATCH, dtype=torch.int8, device="cuda")


def flush() -> None:
    """Write more than the cache holds; meanwhile the host gets ahead, as in a training loop."""
    _scratch().zero_()


def replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds of one replay."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection in the middle of a sample; nothing is done where somebody has seen to that already."""
    if not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleaved(
    providers: Sequence[Provider], device: str, seconds: float, refused: Callable[[str, Exception], None] | None = None
) -> dict[str, Samples]:
    """Samples of every provider, about `seconds` of work each: one sample of each in turn, in an order drawn anew.

    Where calls are short the one just before warms the caches, so nobody may always follow the same one.

    A competitor that fails (most often: runs out of memory) is handed to `refused`, if that is given, and left out.
    """
    samples, spent = {}, {}
    for provider in providers:  # the warm-up: caches, compilation, thread pools
        first = Samples()
        try:
            if provider.name == "compile" or device != "cpu":
                once(provider, device, Samples())  # compiling is not part of a step
            slow = once(provider, device, first) > PATIENCE
        except Exception as error:
            if refused is None or provider.name == "ours":
                raise
            refused(provider.name, error)
            continue
        samples[provider.name] = first if slow else Samples()  # beside minutes of work a warm-up does not show
        spent[provider.name] = PATIENCE if slow else 0.0
    serving = {provider.name: provider for provider in providers if provider.name in samples}

    def sample(name: str) -> None:
        spent[name] += once(serving[name], device, samples[name])

    _in_turns(sample, spent, seconds)
    return samples


def _in_turns(sample: Callable[[str], None], spent: dict[str, float], seconds: float) -> None:
    """Call `sample` with each name in turn until each has had its seconds; it adds to `spent`."""
    order = random.Random(0)
    with quiet():
        turn, active = 0, [name for name in spent if spent[name] < PATIENCE]
        while active:
            for name in order.sample(active, len(active)):
                sample(name)
            turn += 1
            active = [name for name in active if turn < MOST and not _enough(turn, spent[name], seconds)]


def replays(graphs: dict[str, torch.cuda.CUDAGraph], samples: dict[str, Samples], seconds: float) -> None:
    """Add to the samples of each provider those of replays of its graph, in turns too."""
    spent = dict.fromkeys(graphs, 0.0)

    def sample(name: str) -> None:
        samples[name].graph.append(replayed(graphs[name]))
        spent[name] += samples[name].graph[-1]

    _in_turns(sample, spent, seconds)


def _enough(turn: int, spent: float, seconds: float) -> bool:
    return spent >= PATIENCE or (turn >= FEWEST and spent >= seconds)
