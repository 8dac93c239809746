"""The list of near pairs in training: the harness' own data and network, all pairs beside it in every step."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels.data import ResumableLoader
from lt_kernels.functional import logit_weight_repulsion
from lt_kernels.regularizers import LogitWeightRepulsion
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import build_method
from lt_kernels.train.methods.method import Setting
from lt_kernels.train.run.build import build_module, load_data

SETTING = Setting(torch.tensor([200, 50, 10, 1]), 6, 10)


DIGITS = {"lwr_threshold": 0.1, "lwr_strength": 0.001, "lwr_neighbours": "list", "lwr_skin": 0.06}
WORDS = {"lwr_threshold": 0.3, "lwr_strength": 0.01, "lwr_neighbours": "list", "lwr_skin": 0.1}


def run_of(name: str, tmp_path: Path) -> TrainConfig:
    """A short run on real data: all of digits-lt, or the more frequent of the library's words."""
    if name == "digits-lt":
        return TrainConfig(method="bs-lwr", method_options=DIGITS, epochs=8, lr=0.02, batch_size=32)
    few = {"max_tokens": 150_000, "num_classes": 300, "cache_dir": str(tmp_path)}
    network = {"embedding": 32, "features": 64, "combine": "sum"}
    shape: dict[str, Any] = {"data_options": few, "network": "words", "network_options": network}
    return TrainConfig(name, method="bs-lwr", method_options=WORDS, epochs=2, epoch_steps=30, lr=0.02, **shape)


@pytest.mark.parametrize("name", ["digits-lt", "stdlib-words"])
def test_every_step_of_a_run_is_that_of_all_pairs(name: str, tmp_path: Path) -> None:
    """Balanced softmax with repulsion, whose class weights turn with every step."""
    config = run_of(name, tmp_path)
    data = load_data(config)
    module = build_module(config, data)
    term, optimizer = module.regularizer, module.configure_optimizers()
    assert isinstance(term, LogitWeightRepulsion)
    values, listed, steps = set(), set(), 0
    for epoch in range(config.epochs):
        module.apply_epoch(epoch)
        loader = ResumableLoader(data.train, config.batch_size, seed=epoch)
        for batch in itertools.islice(loader, config.epoch_steps or None):
            leaf = module.head.weight.detach().clone().requires_grad_()
            pairs = [term(leaf), logit_weight_repulsion(leaf, threshold=term.threshold)]
            slopes = [torch.autograd.grad(value, leaf)[0] for value in pairs]
            assert_close(pairs[0], pairs[1])
            assert_close(slopes[0], slopes[1])
            values.add(round(pairs[1].item(), 4))
            listed.add(term.pairs)
            optimizer.zero_grad()
            module.training_step(batch, 0)["loss"].backward()
            optimizer.step()
            steps += 1
    assert 3 < term.rebuilds < steps, term.rebuilds
    assert len(values) > 20
    assert len(listed) > 3


def test_forms_of_repulsion() -> None:
    """The gradient through the normalisation, constant norms, and products in the place of cosines."""
    torch.manual_seed(0)
    weight, found = torch.randn(6, 10, requires_grad=True), []
    for project in (True, False, "raw"):
        parts = build_method("bs-lwr", SETTING, {"lwr_project": project, "lwr_threshold": -1.0})
        assert parts.regularizer is not None
        expected = logit_weight_repulsion(weight, threshold=-1.0, project=project)  # type: ignore[arg-type]
        ours = parts.regularizer(weight)
        assert torch.equal(ours, expected)
        found.append(torch.autograd.grad(ours, weight)[0])
    assert all((found[one] - found[two]).abs().max() > 0.01 for one, two in ((0, 1), (0, 2), (1, 2)))


def test_a_recipe_asks_for_the_list() -> None:
    chosen: dict[str, Any] = {"lwr_neighbours": "list", "lwr_skin": 0.25}
    listed, plain = (build_method("bs-lwr", SETTING, options).regularizer for options in (chosen, {}))
    assert isinstance(listed, LogitWeightRepulsion)
    assert isinstance(plain, LogitWeightRepulsion)
    assert (listed.neighbours, listed.skin, plain.neighbours, plain.skin) == ("list", 0.25, "all", 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lwr_neighbours": "x"}, r"neighbours must be one of 'all', 'list', got 'x'"),
        ({"lwr_neighbours": 1}, r"lwr_neighbours must be a name, got 1"),
        ({"lwr_skin": -1.0}, r"skin must be .*got -1\.0"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method("bs-lwr", SETTING, options)
