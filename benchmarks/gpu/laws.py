"""Same input, same bits: run after run, and whatever lies in the memory that a result is written to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.gpu.judge import every, outcome
from benchmarks.gpu.pool import PARTS, Pool, Scene
from benchmarks.gpu.report import Check

RUNS = 20
DTYPES = (torch.bfloat16, torch.float32)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal to the last bit, NaN too."""
    return all(torch.equal(as_bytes(first[name]), as_bytes(second[name])) for name in first)


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in a row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def disturb(device: str, turn: int) -> None:
    """Leave other numbers in the memory that the allocator gives out next."""
    for size in (2**10, 2**16, 2**20, 2**23):
        torch.full((size + 64 * turn,), float(turn) - 7.5, device=device)


def determinism(check: Check) -> None:
    """One line for each part: how many scenes there were, and which gave other bits."""
    runs = 3 if check.tiny else RUNS
    check.say(f"Each scene {runs} times, in bfloat16 and float32; then once with new memory full of NaN.")
    check.table("part", "scenes", "verdict")
    for part in (*PARTS, "losses"):
        count, wrong, before = 0, [], len(check.failures)
        for dtype in DTYPES:
            for scene in every(part, Pool(check.device, dtype, check.seed), check.tiny):
                with check.guarded(f"determinism, {scene.title} {dtype}"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = _differs(scene, check, runs)
                    wrong += [f"{scene.title} {dtype}: {found}"] if found else []
                count += 1
        check.row(part, count, "FAIL" if wrong or len(check.failures) > before else "ok")
        for text in wrong:
            check.fail(f"determinism, {text}")


def _differs(scene: Scene, check: Check, runs: int) -> str:
    """In what the scene's results differ, or nothing."""
    with check.kernels():
        first = outcome(scene.ours, scene)
        for turn in range(1, runs):
            disturb(check.device, turn)
            if not same_bits(first, outcome(scene.ours, scene)):
                return f"other bits in run {turn + 1}"
        with poisoned():
            again = outcome(scene.ours, scene)
    return "" if same_bits(first, again) else "other bits where new memory holds NaN"
