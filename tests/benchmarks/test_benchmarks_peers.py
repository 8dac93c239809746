"""Other people's losses that run on a CPU compute what ours does: the value and the gradients."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import check, peers
from benchmarks.cases import COSINE, Case
from benchmarks.problems import problem
from benchmarks.providers import providers
from lt_kernels.functional import ArcFace, CosFace, cosine_margin_cross_entropy

POSED = problem(Case(COSINE, "x", 40, 7, 12), "cpu")
HERE = pytest.mark.skipif(
    bool(peers.absent("pml")), reason=f"pytorch-metric-learning is not installed: {peers.absent('pml')}"
)


@HERE
def test_metric_learning_is_right_and_gets_a_time() -> None:
    found = check.errors(POSED, ["ours", "pml"])
    assert {name: right for name, (_, right) in found.items()} == {"ours": True, "pml": True}
    assert [provider.name for provider in providers(POSED, ["ours", "pml"])] == ["ours", "pml"]


@HERE
@pytest.mark.parametrize(
    ("loss", "theirs", "ours"),
    [
        ("ArcFaceLoss", {"margin": math.degrees(0.5)}, ArcFace(0.5)),
        ("ArcFaceLoss", {"margin": 120.0}, ArcFace(math.radians(120.0))),  # for many rows past pi
        ("CosFaceLoss", {"margin": 0.35}, CosFace(0.35)),
    ],
    ids=["arcface", "arcface-past-pi", "cosface"],
)
def test_metric_learning_has_our_definition(loss: str, theirs: dict[str, float], ours: ArcFace | CosFace) -> None:
    wide = POSED.to(torch.float64)
    leaves, target = list(wide.leaves.values()), wide.constants["target"]
    values = [
        peers.metric_learning(loss, scale=30.0, **theirs)(*leaves, target),
        cosine_margin_cross_entropy(*leaves, target, margin=ours, scale=30.0),
    ]
    gradients = [torch.autograd.grad(value, leaves) for value in values]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_the_document_names_the_pinned_versions() -> None:
    root = Path(__file__).resolve().parents[2]
    pins = re.findall(r"^([a-z-]+)==(\S+)$", (root / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = (root / "docs" / "kernels" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("pytorch-metric-learning", "liger-kernel", "cut-cross-entropy"):
        assert f"{name} {dict(pins)[name]}" in text


def test_who_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.MODULES, "pml", "no_such_module")
    peers.absent.cache_clear()
    try:
        assert "no_such_module" in peers.absent("pml")
        assert [provider.name for provider in providers(POSED, ["ours", "pml"])] == ["ours"]
    finally:
        peers.absent.cache_clear()
