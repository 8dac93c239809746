"""One run: settings and their errors, the methods by name, schedules, and a network that learns."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from lt_kernels import schedules
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import write_config
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.files.tensors import write_sealed
from lt_kernels.train.methods.build import build_method, find_method, method_names
from lt_kernels.train.methods.method import Setting
from lt_kernels.train.model.classifier import rate_factor
from lt_kernels.train.model.predictions import predict
from lt_kernels.train.model.scores import score
from lt_kernels.train.recipes import apply_overrides, read_config
from lt_kernels.train.run.build import build_module, load_data
from lt_kernels.train.run.generators import random_states, restore_random_states
from lt_kernels.train.run.training import train_run

COUNTS = torch.tensor([200, 50, 10, 1])
QUICK = {"epochs": 2, "batch_size": 32, "lr": 0.05, "warmup_epochs": 1, "threads": 1}

BAD_SETTINGS = [
    ({"epoch": 3}, r"config key must be one of .*got 'epoch' \(did you mean 'epochs'\?\)"),
    ({"epochs": 0}, r"epochs must be an integer of at least 1, got 0"),
    ({"epochs": 2.5}, r"epochs must be an integer of at least 1, got 2\.5"),
    ({"epochs": True}, r"epochs must be an integer"),
    ({"batch_size": "many"}, r"batch_size must be an integer of at least 1, got 'many'"),
    ({"lr": 0}, r"lr must be a finite number above 0, got 0"),
    ({"lr": float("nan")}, r"lr must be a finite number above 0, got nan"),
    ({"momentum": 1.5}, r"momentum must be a finite number of at least 0 and at most 1, got 1\.5"),
    ({"weight_decay": -1}, r"weight_decay must be .* got -1"),
    ({"imbalance": 0.5}, r"imbalance must be .*or left out, got 0\.5"),
    ({"nesterov": "yes"}, r"nesterov must be true or false, got 'yes'"),
    ({"nesterov": True, "momentum": 0}, r"nesterov must be false where momentum is 0, got True"),
    ({"schedule": "linear"}, r"schedule must be one of cosine, step, constant, poly, got 'linear'"),
    ({"schedule": "step"}, r"milestones must be given with schedule: step, and only then, got \[\]"),
    ({"milestones": [1], "gammas": [0.1]}, r"milestones must be given with schedule: step"),
    ({"schedule": "step", "milestones": [2, 1], "gammas": [0.1, 0.1]}, r"milestones must be increasing"),
    ({"schedule": "step", "milestones": [2], "gammas": []}, r"gammas must be one factor for each of the 1 milestones"),
    ({"schedule": "step", "milestones": [1, -2], "gammas": [1, 1]}, r"milestones\[1\] must be .*at least 0, got -2"),
    ({"precision": 16}, r"precision must be one of 32, bf16, fp16, got 16"),
    ({"network_options": [1]}, r"network_options must be a mapping of option names to values, got \[1\]"),
    ({"seed": -1}, r"seed must be an integer of at least 0, got -1"),
    ({"data": ""}, r"data must be a name, got ''"),
    ({"mixup_alpha": -0.1}, r"mixup_alpha must be .* got -0\.1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=[str(case[0]) for case in BAD_SETTINGS])
def test_a_bad_setting_is_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


BAD_RUNS = [
    ({"data": "digits"}, r"data digits.*'digits-lt'"),
    ({"imbalance": 1e6}, r"imbalance"),
    ({"data_options": {"test_per": 1}}, r"data_options .*test_per"),
    ({"network": "resnet"}, r"network resnet.*'mlp'"),
    ({"network_options": {"width": 3}}, r"network_options .*width"),
    ({"method": "balanced"}, r"method .*must be one of .*got 'balanced'"),
    ({"method": "focal", "method_options": {"gama": 1}}, r"method_options of focal must be one of gamma.*'gama'"),
    ({"method": "focal", "method_options": {"gamma": "high"}}, r"method_options.gamma must be a number, got 'high'"),
    (
        {"method": "ce", "method_options": {"tau": 1}},
        r"method_options of ce must be one of label_smoothing.* got 'tau'",
    ),
    ({"method": "ldam-drw", "method_options": {"drw_start": 2}}, r"drw_start must be a share of the epochs.*got 2"),
    ({"method": "ldam", "method_options": {"scale": -1}}, r"method ldam .*scale"),
    ({"method": "bs-lwr", "method_options": {"lwr_project": 1}}, r"lwr_project must be true, false or raw, got 1"),
    ({"method": "lade", "mixup_alpha": 1.0}, r"mixup_alpha must be 0 for the method lade, got 1\.0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_RUNS, ids=[str(case[0]) for case in BAD_RUNS])
def test_a_setting_that_does_not_fit_is_named(settings: dict, message: str) -> None:
    config = make_config(settings)
    with pytest.raises(ConfigError, match=message):
        build_module(config, load_data(config))


def test_yaml_floats_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 5e-4\nepochs: 3\n")
    assert read_config(tmp_path / "a.yaml").lr == 5e-4


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    config = TrainConfig(
        schedule="step",
        milestones=(1, 2),
        gammas=(0.1, 0.01),
        network_options={"hidden": [8]},
        imbalance=10,
        precision="bf16",
    )
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_changes_reach_inside_mappings_and_are_read_as_yaml() -> None:
    settings = {"method_options": {"tau": 1.0}, "lr": 1}
    changed = apply_overrides(
        settings, ["method_options.tau=2", "lr=0.5", "network_options.hidden=[4, 5]", "nesterov=true"]
    )
    assert changed == {
        "method_options": {"tau": 2}, "lr": 0.5, "network_options": {"hidden": [4, 5]}, "nesterov": True,
    }  # fmt: skip
    assert settings == {"method_options": {"tau": 1.0}, "lr": 1}


@pytest.mark.parametrize(
    ("change", "message"), [("lr", "key=value, got 'lr'"), ("=3", "'=3'"), ("lr.x=1", "lr holds no")]
)
def test_a_change_that_cannot_be_read_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"lr": 1}, [change])


@pytest.mark.parametrize("text", ["[1, 2]", "lr: [1", "just words"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config '.*a\.yaml'"):
        read_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"missing\.yaml' cannot be read"):
        read_config(tmp_path / "missing.yaml")


def test_a_recipe_may_hold_options_by_method() -> None:
    settings = {"methods": {"la": {"tau": 2.0}}, "method": "la"}
    assert make_config(settings).method_options == {"tau": 2.0}
    assert make_config({**settings, "method_options": {"tau": 3.0}}).method_options == {"tau": 3.0}
    assert make_config({**settings, "method": "bs"}).method_options == {}


@pytest.mark.parametrize("suffix", ["", "-lwr"])
@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_loss_that_trains_its_head(name: str, suffix: str) -> None:
    options = {"queue": 64} if "gml" in name else {}
    parts = build_method(name + suffix, Setting(COUNTS, 6, 10), options)
    shape = (12 * parts.views, 6 * parts.experts)
    features, target = torch.randn(shape, requires_grad=True), torch.arange(12) % 4
    for epoch in (0, 9):
        if parts.weight is not None:
            parts.head.loss.set_weight(parts.weight(epoch))
        loss = parts.head(features, target)
        if parts.regularizer is not None:
            loss = loss + parts.strength(epoch) * parts.regularizer(parts.head.weight)
        loss.backward()
        assert loss.ndim == 0
        assert features.grad.abs().sum() > 0
        assert parts.head.weight.grad.isfinite().all()
        assert parts.head(features[:12]).shape == (12, 4)
    assert (parts.regularizer is not None) == (suffix == "-lwr")


def test_repulsion_fades_with_the_epochs() -> None:
    options = {"lwr_strength": 3.0, "lwr_power": 2.0}
    strength = build_method("bs-lwr", Setting(COUNTS, 6, 10), options).strength
    assert [strength(epoch) for epoch in (0, 5, 10)] == pytest.approx([3.0, 0.75, 0.0])


@pytest.mark.parametrize("name", ["ldam-drw", "dbm-drw", "focal-drw"])
def test_deferred_weights_come_after_their_share_of_the_epochs(name: str) -> None:
    config = TrainConfig(method=name, method_options={"drw_start": 0.5}, epochs=4)
    module = build_module(config, load_data(config))
    for epoch in (0, 1):
        module.apply_epoch(epoch)
        assert module.head.loss.weight is None
    module.apply_epoch(2)
    expected = schedules.DeferredReweighting(load_data(config).class_counts, start_epoch=2, beta=0.9999)(2)
    assert torch.equal(module.head.loss.weight, expected)


def test_methods_of_one_seed_start_from_one_network() -> None:
    first, second = (TrainConfig(method=method, seed=3) for method in ("ce", "dbm-bs"))
    data = load_data(first)
    states = [build_module(config, data).network.state_dict() for config in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_cosine_rate_is_its_formula() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=2, schedule="cosine")
    assert rate_factor(config, 0, 0, 4) == pytest.approx(0.25 / 2)
    assert rate_factor(config, 1, 3, 4) == pytest.approx(1.0)
    assert rate_factor(config, 2, 2, 4) == pytest.approx((1 + math.cos(math.pi * 2.5 / 10)) / 2)


def test_step_rate_multiplies_the_peak_rate() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=0, schedule="step", milestones=(4, 6), gammas=(0.01, 0.0001))
    assert [rate_factor(config, epoch, 0, 5) for epoch in (0, 3, 4, 5, 6, 9)] == [1, 1, 0.01, 0.01, 0.0001, 0.0001]


def test_random_states_survive_a_weights_only_checkpoint(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    draw()
    write_sealed(random_states(), tmp_path / "a.ckpt")
    first = draw()
    restore_random_states(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert draw() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path, dict]:
    """A short run of balanced softmax with mixup and repulsion."""
    folder = tmp_path_factory.mktemp("run") / "bs"
    config = TrainConfig(**{**QUICK, "epochs": 5}, method="bs-lwr", mixup_alpha=0.5, validate_every=2)
    return config, folder, train_run(config, folder)


def test_the_loss_falls_and_the_network_learns(finished: tuple[TrainConfig, Path, dict]) -> None:
    _, folder, result = finished
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert result["accuracy"]["all"] > 40
    assert ["all" in row for row in rows] == [False, True, False, True, True]


def test_a_result_is_what_its_checkpoint_predicts(finished: tuple[TrainConfig, Path, dict]) -> None:
    config, folder, result = finished
    data = load_data(config)
    module = build_module(config, data)
    module.load_state_dict(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
    prediction = predict(module, data.test[0])
    right = [(prediction[data.test[1] == digit] == digit).double().mean().item() for digit in range(10)]
    assert result["per_class"] == pytest.approx([100 * share for share in right])
    assert result["accuracy"]["all"] == pytest.approx(10 * sum(right))
    assert result["accuracy"]["all"] == pytest.approx(read_rows(folder)[-1]["all"])
    groups = {"many": slice(0, 1), "medium": slice(1, 4), "few": slice(4, 10)}  # 124 | 74 44 26 | 16 9 5 3 2 1
    assert data.class_counts.tolist() == [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]
    for name, part in groups.items():
        assert result["accuracy"][name] == pytest.approx(100 * float(np.mean(right[part])))
    assert result["accuracy"]["gm"] == pytest.approx(100 * math.exp(np.mean([math.log(x or 1e-3) for x in right])))


def test_tensorboard_has_the_rows_of_the_table(finished: tuple[TrainConfig, Path, dict]) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    reader = events.EventAccumulator(str(finished[1] / "tensorboard"))
    reader.Reload()
    rows = read_rows(finished[1])
    assert [event.value for event in reader.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert [event.step for event in reader.Scalars("all")] == [2, 4, 5]


def test_same_config_same_bits_and_a_used_folder_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, method="ldam-drw", epoch_steps=4)
    states = []
    for name in ("a", "b"):
        torch.manual_seed(len(states))  # what was drawn before a run must not matter
        train_run(config, tmp_path / name)
        states.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [row["step"] for row in read_rows(tmp_path / "a")] == [4, 8]
    with pytest.raises(ConfigError, match=r"--out .* holds a run already"):
        train_run(config, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--resume: lr must be 0\.05.*got 0\.1"):
        train_run(config.replace(lr=0.1), tmp_path / "a", resume=True)
    assert (
        train_run(config, tmp_path / "a", resume=True)["accuracy"]
        == train_run(config, tmp_path / "b", resume=True)["accuracy"]
    )


def test_bfloat16_trains(tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, method="bs", precision="bf16")
    train_run(config, tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_score_leaves_out_a_group_without_classes() -> None:
    data = load_data(TrainConfig(imbalance=2))  # 124 down to 62: nothing is few
    perfect = score(data.test[1], data).groups
    assert perfect == pytest.approx({"many": 100, "medium": 100, "all": 100, "gm": 100})


def test_an_unknown_method_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'dbm-bs'"):
        find_method("dbmbs")
