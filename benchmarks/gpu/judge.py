"""Correctness on a GPU: values and all gradients of every public function, option and named loss against float64.

Our error may not exceed that of eager torch, in the same dtype on the same device, by more than the dtype's tolerance.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import providers
from benchmarks.cases import Case
from benchmarks.gpu import sections
from benchmarks.gpu.pool import FULL, PARTS, TINY, Function, Pool, Scene
from benchmarks.gpu.report import Check
from benchmarks.gpu.scenes import scenes
from benchmarks.problems import Problem, problem
from benchmarks.registry import NAMED
from tests.tolerances import TOLERANCE, error


class Kind(NamedTuple):
    """A dtype, and how float32 matrices are multiplied; `tolerance` in the units of tests/tolerances.py."""

    name: str
    dtype: torch.dtype
    precision: str
    tolerance: float


# tf32 has the ten bits of a float16, so that is its tolerance.
KINDS = (
    Kind("bfloat16", torch.bfloat16, "highest", TOLERANCE[torch.bfloat16]),
    Kind("float32", torch.float32, "highest", TOLERANCE[torch.float32]),
    Kind("tf32", torch.float32, "high", TOLERANCE[torch.float16]),
    Kind("float16", torch.float16, "highest", TOLERANCE[torch.float16]),
    Kind("float64", torch.float64, "highest", TOLERANCE[torch.float64]),
)
DRAWS = 5
LOSS_SIZES = {True: (5, 17, 8), False: (130, 100, 64)}


@contextmanager
def precision(setting: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` within the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cotangent(value: Tensor) -> Tensor:
    """Slopes of 1/8 to 1 for values that are not a scalar: no dtype rounds them."""
    if value.ndim == 0:
        return torch.ones_like(value)
    count = torch.arange(value.numel(), device=value.device) % 8 + 1
    return (count / 8).to(value.dtype).reshape(value.shape)


def outcome(function: Function, scene: Scene, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The value and the gradient of every leaf, with the scene's numbers in another dtype if one is given."""

    def cast(x: Tensor) -> Tensor:
        return x.detach().to(dtype) if dtype is not None and x.is_floating_point() else x.detach()

    leaves = {name: cast(leaf).requires_grad_() for name, leaf in scene.leaves.items()}
    value = function(**leaves, **{name: cast(x) for name, x in scene.constants.items()})
    found = torch.autograd.grad(value, list(leaves.values()), cotangent(value))
    return {"value": value.detach(), **dict(zip(leaves, found, strict=True))}


Errors = dict[str, tuple[float, float]]  # of the value and each gradient: ours, eager torch's


def errors(scene: Scene, kind: Kind, check: Check) -> Errors:
    """Our errors and eager torch's, each against float64."""
    with check.kernels(), precision(kind.precision):
        found = outcome(scene.ours, scene)
    with torch.device(check.device):
        with precision(kind.precision):
            usual = outcome(scene.dense, scene)
        exact = outcome(scene.dense, scene, torch.float64)
    pairs = {}
    for name, truth in exact.items():
        others = error(usual[name], truth)
        # where eager torch has no finite result there is nothing to be compared with, and the tolerance alone counts
        pairs[name] = error(found[name], truth), others if math.isfinite(others) else 0.0
    return pairs


def wrong(found: Errors, kind: Kind) -> list[str]:
    """What errs by too much."""
    too_large = {name: pair for name, pair in found.items() if not pair[0] <= pair[1] + kind.tolerance}
    return [f"{kind.name} {name}: {mine:.2e}, eager {others:.2e}" for name, (mine, others) in too_large.items()]


def judged(part: str, index: int, scene: Scene, kind: Kind, check: Check) -> Errors:
    """The errors; where they are too large, the means over more draws, because two roundings are two lotteries."""
    draws = [errors(scene, kind, check)]
    if wrong(draws[0], kind):
        for turn in range(1, DRAWS):
            pool = Pool(check.device, kind.dtype, check.seed + turn)
            another = next(itertools.islice(every(part, pool, check.tiny), index, None))
            draws.append(errors(another, kind, check))

    def mean(name: str, which: int) -> float:
        return sum(draw[name][which] for draw in draws) / len(draws)

    return {name: (mean(name, 0), mean(name, 1)) for name in draws[0]}


def named_losses(pool: Pool, tiny: bool) -> Iterator[Scene]:
    """Every named loss, with its settings as they come."""
    for name in NAMED:
        case = Case("losses", name, *LOSS_SIZES[tiny], loss=name, dtype=pool.dtype)
        posed = problem(case, pool.device, pool.seed % 2**31)
        posed = posed.to(torch.float64) if pool.dtype == torch.float64 else posed
        leaves = {key: leaf.detach() for key, leaf in posed.leaves.items()}
        yield Scene(name, _ours(posed), functools.partial(_dense, posed), leaves, posed.constants)


def _ours(posed: Problem) -> Function:
    """The module, made once; where it has a state, which a call moves, anew for each call."""
    if posed.case.loss == "EstimatedOffsetLoss":
        return lambda **tensors: _called(_made(posed), tensors)
    once = _made(posed)
    taken = tuple(inspect.signature(once).parameters)
    return lambda **tensors: once(**{name: tensors[name] for name in taken})


def _made(posed: Problem) -> Function:
    found = providers.function_of("ours", posed)
    assert found is not None
    return found


def _dense(posed: Problem, **tensors: Tensor) -> Tensor:
    centers = {"centers": tensors["centers"]} if "centers" in tensors else {}
    renewed = Problem(posed.case, posed.leaves, posed.constants | centers)
    return _called(providers.eager_function(renewed), tensors)


def _called(function: Function, tensors: dict[str, Tensor]) -> Tensor:
    taken = inspect.signature(function).parameters
    return function(**{name: tensor for name, tensor in tensors.items() if name in taken})


def every(part: str, pool: Pool, tiny: bool) -> Iterator[Scene]:
    """The scenes of a part, of which "losses" is one."""
    return named_losses(pool, tiny) if part == "losses" else scenes(part, pool, TINY if tiny else FULL)


def correctness(check: Check, part: str, wanted: Sequence[str] = sections.KINDS) -> None:
    """One line for each scene: our largest error and eager torch's in every dtype that is wanted."""
    kinds = [kind for kind in KINDS if kind.name in wanted and (kind.name != "tf32" or part in sections.PRODUCTS)]
    columns = zip(*(every(part, Pool(check.device, kind.dtype, check.seed), check.tiny) for kind in kinds), strict=True)
    check.say("Largest error of the value and all gradients against float64: ours / eager torch's.")
    check.table("scene", *(kind.name for kind in kinds), "verdict")
    for index, column in enumerate(columns):
        found: list[Errors | None] = []
        for kind, scene in zip(kinds, column, strict=True):
            found.append(None)
            with check.guarded(f"{scene.title} {kind.name}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[-1] = judged(part, index, scene, kind, check)
        bad = [text for pairs, kind in zip(found, kinds, strict=True) if pairs for text in wrong(pairs, kind)]
        check.row(column[0].title, *map(cell, found), "FAIL" if bad or None in found else "ok")
        if bad:
            check.fail(f"{column[0].title}: {'; '.join(bad)}")


def cell(found: Errors | None) -> str:
    """The pair in which ours is worst beside eager torch's."""
    if found is None:
        return ""
    mine, others = max(found.values(), key=lambda pair: pair[0] - pair[1])
    return f"{mine:.1e} / {others:.1e}"


def smoke(check: Check) -> None:
    """Every scene once, at a small size, for a memory checker to look at."""
    for part in (*PARTS, "losses"):
        for dtype in (torch.bfloat16, torch.float32):
            for scene in every(part, Pool(check.device, dtype, check.seed), tiny=True):
                with check.guarded(f"smoke, {scene.title} {dtype}"), check.kernels():
                    outcome(scene.ours, scene)
        check.say(f"ran {part}")
