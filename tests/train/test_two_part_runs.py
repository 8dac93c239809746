"""Runs of methods with views, a queue, experts or a teacher: what they hold, and that a resumed run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from cuts import cut

from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.run import build, training
from lt_kernels.train.run.loading import load_run

QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 64,
    "lr": 0.05,
    "warmup_epochs": 1,
    "threads": 1,
    "validate_every": 2,
    "checkpoint_steps": 2,
    "augment": "shift",
    "network_options": {"hidden": [16]},
}
SMALL = {"gml": {"queue": 64, "out_features": 8}, "bcl": {"hidden": 8, "out_features": 8}, "ncl": {"experts": 2}}


def config_of(method: str, options: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    base = SMALL[method.removeprefix("dbm-")] if options is None else options
    return make_config({**QUICK, "method": method, "method_options": base, **changes})


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", ["gml", "dbm-bcl", "dbm-ncl"])
def test_a_run_cut_short_goes_on_to_the_same_bits(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(method)
    training.train_run(config, tmp_path / "whole")
    cut(7, lambda: training.train_run(config, tmp_path / "cut"))
    training.train_run(config, tmp_path / "cut", resume=True)
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_experts_are_networks_of_their_own_and_predict_their_mean() -> None:
    config = config_of("ncl")
    data = build.load_data(config)
    module = build.build_module(config, data).eval()
    first, second = module.network.networks
    plain = build.build_module(make_config({**QUICK, "method": "ce"}), data)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in plain.network.state_dict().items())
    assert not torch.equal(first.layers[0].weight, second.layers[0].weight)
    inputs = data.test[0][:5]
    rows = torch.nn.functional.normalize(module.head.weight.detach().double().view(2, 10, 16), dim=2)
    features = [torch.nn.functional.normalize(part(inputs).detach().double(), dim=1) for part in (first, second)]
    expected = sum(feature @ weight.T for feature, weight in zip(features, rows)) / 2  # of raw cosines
    assert torch.allclose(module(inputs).detach().double(), expected, atol=1e-4)


def test_repulsion_acts_within_each_expert() -> None:
    config = make_config({**QUICK, "method": "ncl-lwr", "method_options": {**SMALL["ncl"], "lwr_threshold": -1.0}})
    data = build.load_data(config)
    module = build.build_module(config, data)
    module.apply_epoch(0)
    torch.manual_seed(0)
    step = module.training_step((data.train[0][:8], data.train[1][:8]), 0)
    rows = torch.nn.functional.normalize(module.head.weight.detach().double().view(2, 10, 16), dim=2)
    expected = sum(float((similar.exp().sum(1).log() - similar.diag()).sum()) for similar in rows @ rows.mT)
    assert float((step["loss"] - step["data_loss"]).detach()) == pytest.approx(expected, rel=1e-5)


def test_later_views_have_an_augmentation_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def remember(name: str, inputs: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        asked.append(name)
        return inputs + len(asked)

    monkeypatch.setattr("lt_kernels.train.augment.augmentations.augment", remember)
    config = config_of("bcl", {**SMALL["bcl"], "views": 3}, augment_views="crop-flip")
    module = build.build_module(config, build.load_data(config))
    batch = torch.zeros(4, 1, 8, 8), torch.arange(4)
    inputs, target = module._prepared(*batch)
    assert asked == ["shift", "crop-flip", "crop-flip"]
    assert inputs[:, 0, 0, 0].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert target is batch[1]
    assert module.head.contrasted == "later"
    assert module.training_step(batch, 0)["loss"].isfinite()


def test_the_learned_temperature_has_no_weight_decay() -> None:
    config = config_of("gml", weight_decay=0.1)
    module = build.build_module(config, build.load_data(config))
    decays = {
        id(parameter): group["weight_decay"]
        for group in module.configure_optimizers().param_groups
        for parameter in group["params"]
    }
    assert len(decays) == len(list(module.parameters()))
    assert [name for name, parameter in module.named_parameters() if decays[id(parameter)] == 0] == [
        "head.loss.log_temperature"
    ]


def test_a_teacher_is_a_finished_run_and_no_part_of_the_state(tmp_path: Path) -> None:
    training.train_run(config_of("gml"), tmp_path / "teacher")
    options = {**SMALL["gml"], "distillation_weight": 1.0, "teacher": str(tmp_path / "teacher")}
    taught = training.train_run(config_of("gml", options), tmp_path / "taught")
    plain = training.train_run(config_of("gml"), tmp_path / "plain")
    before, after = state(tmp_path / "plain"), state(tmp_path / "taught")
    assert before.keys() == after.keys()
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert taught["parameters"] == plain["parameters"]
    config, data, module = load_run(tmp_path / "taught")
    assert config.method_options["teacher"] == str(tmp_path / "teacher")
    assert module(data.test[0][:3]).shape == (3, 10)
    training.train_run(make_config({**QUICK, "method": "ce"}), tmp_path / "logits")
    wrong = config_of("gml", {**options, "teacher": str(tmp_path / "logits")})
    with pytest.raises(ConfigError, match=r"teacher must name a run whose method predicts cosines.*method ce"):
        training.train_run(wrong, tmp_path / "wrong")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "gml",
            {"teacher": "nowhere", "distillation_weight": 1.0},
            "method_options.teacher must name a finished run: .*'nowhere'",
        ),
        ("gml", {"teacher": "nowhere"}, "teacher must name a run where distillation_weight is above 0.* with 0"),
        ("gml", {"distillation_weight": 1.0}, "teacher must name a run .*got '' with 1"),
        ("ncl", {"experts": float("inf")}, "experts"),
        ("gml", {"queue": 4}, "queue"),
        ("ncl", {"hard_share": 0.0}, "hard_share"),
        ("ncl", {"experts": 0}, "experts"),
        ("ncl", {"unselected": "kept"}, "unselected"),
        ("dbm-bcl", {"max_margin": -1.0}, "max_margin"),
        ("bcl", {"temperature": 0.0}, "temperature"),
        ("bcl", {"views": 0}, "views"),
    ],
)
def test_a_bad_option_is_named(method: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = config_of(method, options)
    with pytest.raises(ConfigError, match=message):
        training.train_run(config, tmp_path / "run")


@pytest.mark.parametrize("method", ["bcl", "gml", "ncl"])
def test_no_mixing_with_a_second_part(method: str) -> None:
    config = config_of(method, mixup_alpha=1.0)
    with pytest.raises(ConfigError, match=f"mixup_alpha must be 0 for the method {method}, got 1.0"):
        build.build_module(config, build.load_data(config))
