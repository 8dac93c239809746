"""CUDA graphs, host synchronisation and torch.compile: that they change nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.capture import captured, syncs
from benchmarks.gpu.judge import every, outcome
from benchmarks.gpu.laws import same_bits
from benchmarks.gpu.pool import PARTS, Pool, Scene
from benchmarks.gpu.report import Check
from tests.tolerances import TOLERANCE, error

# Some scenes also through code generation, which takes seconds each; the others through the tracer and autograd.
INDUCTOR = ("offset_cross_entropy, offset", "cosine_margin_cross_entropy, dbm, offset", "logit_weight_repulsion, plain")


def _fixed(check: Check, dtype: torch.dtype) -> Iterator[Scene]:
    """The scenes that may be captured or compiled: all but the loss that moves its centres at each call."""
    for part in (*PARTS, "losses"):
        for scene in every(part, Pool(check.device, dtype, check.seed), check.tiny):
            if scene.name != "EstimatedOffsetLoss":
                yield scene


def graphs(check: Check) -> None:
    """No host synchronisation, and a replay on other numbers that gives the bits of a plain call."""
    if check.device != "cuda":
        check.say("Needs a CUDA device; not run.")
        return
    check.table("scene", "host synchronisation", "replay on new inputs")
    for scene in _fixed(check, torch.bfloat16):
        with check.guarded(f"graph, {scene.title}"):
            waits = syncs(lambda scene=scene: outcome(scene.ours, scene))
            replay = "not captured" if waits else _replay(scene)
            check.row(scene.title, waits or "none", replay or "same bits")
            if waits or replay:
                check.fail(f"graph, {scene.title}: {waits or replay}")


def _replay(scene: Scene) -> str:
    """In what a replay differs from a plain call, or nothing."""
    graph, found = captured(lambda: outcome(scene.ours, scene))
    for leaf in scene.leaves.values():  # the graph reads these tensors' memory
        leaf.mul_(0.75)
    expected = outcome(scene.ours, scene)
    graph.replay()
    torch.cuda.synchronize()
    return "" if same_bits(found, expected) else "other bits than a plain call"


def compile(check: Check) -> None:
    """torch.compile(fullgraph=True) of every scene."""
    check.say("Backend aot_eager; the scenes that are marked also through inductor.")
    check.table("scene", "largest difference", "verdict")
    for scene in _fixed(check, torch.float32):
        if "slabs" in scene.name:  # a budget is set around a compiled function, not inside it
            continue
        backends = ("aot_eager", "inductor") if scene.name in INDUCTOR and not check.tiny else ("aot_eager",)
        for backend in backends:
            with check.guarded(f"compile, {scene.title}"), warnings.catch_warnings(), check.kernels():
                warnings.simplefilter("ignore")
                _compiled(scene, backend, check)


def _compiled(scene: Scene, backend: str, check: Check) -> None:
    torch._dynamo.reset()
    compiled: Callable[..., Tensor] = torch.compile(scene.ours, fullgraph=True, backend=backend)
    expected, found = outcome(scene.ours, scene), outcome(compiled, scene)
    worst = max(error(found[name], expected[name]) for name in expected)
    ok = worst <= TOLERANCE[expected["value"].dtype]
    mark = " (inductor)" if backend == "inductor" else ""
    check.row(scene.title + mark, f"{worst:.1e}", "ok" if ok else "FAIL")
    if not ok:
        check.fail(f"compile, {scene.title}{mark}: {worst:.2e}")
