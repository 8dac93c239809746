"""What a call costs the host on a GPU, measured without one: python -m benchmarks.gpu.host

The tensors are on the CPU and small, so that torch's own arithmetic takes next to nothing, and Triton is given a driver
whose launcher does nothing but ask each tensor for its address. So everything runs that runs on a GPU, Triton's binding
and look-up of the compiled kernel included, but the driver's call itself (2 to 3 us a launch), the work of the caching
allocator in place of malloc, and the autograd engine's change of thread (once a backward pass, for eager torch too).
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tables.markdown import markdown

ROWS, CLASSES, FEATURES = 4, 1_100, 16  # beyond 1,024 classes the kernels are those of long rows
WIDE = (256, 8_142)  # logits alone cost the CPU nothing, as nobody reads them
# What a call may cost at most, in microseconds, on a machine where eager torch's F.linear and F.cross_entropy take 80.
GOALS = {"offset CE": 60, "linear": 120, "cosine, ArcFace": 120}
EAGER, TAKES = "eager F.linear and CE", 80


class Driver:
    """In the place of Triton's driver: a Hopper GPU on which nothing runs."""

    def __init__(self) -> None:
        self.utils, self.launches = self, 0

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        """(module, function, registers, spilled, most threads)"""
        return 0, 0, 32, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        """What Triton compares a kernel's needs with."""
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32}

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """The only one."""
        return 0

    def get_current_target(self) -> Any:
        """Compute capability 9.0."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, *_: Any) -> Callable[..., None]:
        """A launcher that reads the addresses of a kernel's tensors, as the real one does in C."""

        def run(*given: Any) -> None:
            self.launches += 1
            for value in given:
                if type(value) is Tensor:
                    value.data_ptr()

        return run


@contextmanager
def without_a_gpu() -> Iterator[Driver]:
    """Within the context the operators take the GPU's way on CPU tensors, and launch into nothing."""
    from triton.runtime import driver

    from lt_kernels.ops import use_kernels

    fake = Driver()
    with ExitStack() as places:
        places.enter_context(patch.object(driver, "_active", fake))
        places.enter_context(patch("lt_kernels.ops.backends.library.interpreted", lambda: True))
        places.enter_context(patch.object(torch.cuda, "current_device", fake.get_current_device))
        places.enter_context(use_kernels("triton"))
        yield fake


class Step(NamedTuple):
    """A loss and the leaves that get its gradient."""

    name: str
    loss: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    ours: bool = True

    def run(self) -> None:
        """Forward and backward, as a training step does them."""
        self.loss().backward()
        for leaf in self.leaves:
            leaf.grad = None


def steps() -> list[Step]:
    """The calls that are timed, each beside its eager form."""
    from lt_kernels import functional

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(*sizes).requires_grad_()

    target, wide = torch.randint(CLASSES, (ROWS,)), torch.randint(WIDE[1], WIDE[:1])
    logits, few, input, weight = leaf(*WIDE), leaf(ROWS, CLASSES), leaf(ROWS, FEATURES), leaf(CLASSES, FEATURES)
    offset, margin = torch.randn(WIDE[1]), functional.ArcFace(0.5)
    cosine = functional.cosine_margin_cross_entropy
    pair = (input, weight)
    return [
        Step("offset CE", lambda: functional.offset_cross_entropy(logits, wide, offset=offset), (logits,)),
        Step("linear", lambda: functional.linear_cross_entropy(input, weight, target), pair),
        Step("cosine, ArcFace", lambda: cosine(input, weight, target, margin=margin), pair),
        Step("lwr", lambda: functional.logit_weight_repulsion(weight), (weight,)),
        Step("eager CE", lambda: F.cross_entropy(few, target), (few,), ours=False),
        Step(EAGER, lambda: F.cross_entropy(F.linear(input, weight), target), pair, ours=False),
    ]


def microseconds(every: Sequence[Step], fake: Driver, calls: int, rounds: int) -> dict[str, tuple[list[float], float]]:
    """(microseconds of a call, once a round; launches of a call) of each step: they take turns, so that they meet the
    same machine. It is the thread's own time, which other processes do not count in.
    """
    found: dict[str, tuple[list[float], float]] = {step.name: ([], 0.0) for step in every}
    for turn in range(rounds + 1):
        for step in every:
            with patch("lt_kernels.ops.calling._forced", ["triton" if step.ours else ""]):
                before, begun = fake.launches, time.thread_time()
                for _ in range(calls):
                    step.run()
                spent = (time.thread_time() - begun) / calls * 1e6
            if turn:  # the first one compiles
                found[step.name][0].append(spent)
                found[step.name] = found[step.name][0], (fake.launches - before) / calls
    return found


def table(found: dict[str, tuple[list[float], float]]) -> str:
    """A row for each call: the middle of its rounds, and that as if eager torch took its 80 us here."""
    unit = statistics.median(found[EAGER][0]) / TAKES if EAGER in found else 1.0
    lines = []
    for name, (times, launches) in found.items():
        scaled, goal = statistics.median(times) / unit, GOALS.get(name)
        verdict = ["", ""] if goal is None else [str(goal), "yes" if scaled <= goal else "no"]
        lines.append([name, f"{launches:g}", f"{scaled * unit:.0f}", f"{scaled:.0f}", *verdict])
    scaled = f"where {EAGER} take {TAKES}"
    return markdown(("call, forward and backward", "launches of ours", "host, us", scaled, "goal", "met"), lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; `--profile NAME` says where one call's time goes."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.host", description="Host time of calls on a GPU.")
    parser.add_argument("--calls", type=int, default=100, help="in a row, of one kind")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", help="the name of a call, such as linear")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    with without_a_gpu() as fake:
        every = steps()
        if chosen.profile:
            every = [step for step in every if step.name.startswith(chosen.profile)]
            microseconds(every, fake, 10, 1)
        watch = cProfile.Profile() if chosen.profile else nullcontext()
        with watch:
            found = microseconds(every, fake, chosen.calls, chosen.rounds)
        print(table(found), flush=True)
        if isinstance(watch, cProfile.Profile):
            pstats.Stats(watch).sort_stats("tottime").print_stats(35)
    return 0


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # triton reads it when it is imported, which is later
    sys.exit(main())
