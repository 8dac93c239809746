"""MixUp before a second stage, and re-scaling without unit rows: what these methods do not do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels.train.config import TrainConfig
from lt_kernels.train.run import build

TWICE = ("crt-mixup", "lws-mixup", "mislas")
QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 32, "warmup_epochs": 0, "threads": 1}


def test_rescaling_alone_leaves_the_norms_free() -> None:
    config = TrainConfig(**QUICK, method="ce-rs")
    module = build.build_module(config, build.load_data(config))
    before = module.head.weight.detach().clone()
    module.on_before_optimizer_step(torch.optim.SGD(module.parameters(), lr=0.1))
    assert torch.equal(module.head.weight.detach(), before)
    assert [name for name, _ in module.head.named_parameters()] == ["weight"]


@pytest.mark.parametrize("method", TWICE)
def test_mixup_is_the_first_stages_alone(method: str) -> None:
    config = TrainConfig(**QUICK, method=method, method_options={"second_share": 0.5})
    data = build.load_data(config)
    module = build.build_module(config, data)
    assert module.config.mixup_alpha == 1.0
    batch = tuple(part[:8] for part in data.train)
    mixed = []
    for epoch in (0, 4):
        module.apply_epoch(epoch)
        torch.manual_seed(3)
        first = module.training_step(batch, 0)["loss"]
        torch.manual_seed(4)
        mixed.append(bool(first.detach() != module.training_step(batch, 0)["loss"].detach()))
    assert mixed == [True, False]
