"""Networks by class_path: made as their arguments say, their features counted, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("jsonargparse", reason="the extra [train] is not installed")

import own_parts

from lt_kernels.data import load
from lt_kernels.train.commands import named_methods
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files.folder import prepare_run
from lt_kernels.train.methods.registry import every_method
from lt_kernels.train.plainyaml import written
from lt_kernels.train.recipes import apply_overrides, read_config, read_settings
from lt_kernels.train.run.build import build_module
from lt_kernels.train.run.loading import load_run
from lt_kernels.train.run.training import train_run

DIGITS = load("digits-lt")
BLOCKS = {"class_path": "own_parts.Blocks", "init_args": {"width": 10}}


def config(**changes: Any) -> TrainConfig:
    return make_config({"imbalance": 100, "threads": 1, "epochs": 1, **changes})


@pytest.mark.parametrize(
    "path, arguments, width",
    [
        ("own_parts.Blocks", {"width": 10}, 10),
        ("own_parts.flat", {"out_features": 7, "bias": False}, 7),
        (
            "own_parts.Wide",
            {"inner": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 128, "out_features": 5}}},
            5,
        ),
    ],
)
def test_features_are_counted(path: str, arguments: dict[str, Any], width: int) -> None:
    state = torch.get_rng_state()
    module = build_module(config(network={"class_path": path, "init_args": arguments}), DIGITS)
    assert module.network.out_features == width == module.head.weight.shape[1]
    assert module.network.training
    torch.manual_seed(0)
    alone = getattr(own_parts, path.partition(".")[2]) if "inner" not in arguments else None
    if alone is not None:  # the weights are those that the class draws, of the config's seed
        for first, second in zip(alone(**arguments).parameters(), module.network.parameters(), strict=True):
            assert torch.equal(first, second)
    torch.set_rng_state(state)


def test_a_stated_number_needs_no_input() -> None:
    maps = config(network={"class_path": "own_parts.Maps"}, network_options={"out_features": 3})
    assert build_module(maps, DIGITS).head.weight.shape[1] == 3


SCENES = {"most": 4, "test_per_class": 1, "size": 24}


@pytest.mark.parametrize(("data", "options", "kind"), [("digits-lt", {}, "image"), ("digit-scenes", SCENES, "scene")])
def test_all_methods_are_those_for_the_inputs_of_the_data(data: str, options: dict[str, Any], kind: str) -> None:
    """A class of one's own does not say what it takes, and the data of the comparison do."""
    settings = {"data": data, "data_options": options, "imbalance": 1, "network": {"class_path": "own_parts.Maps"}}
    assert named_methods("all", settings) == every_method(kind)
    assert named_methods("all", {**settings, "variants": {"far": {"method": "bs"}}}) == every_method(kind)


WRONG = [
    ({"class_path": "own_parts.None"}, r"network.class_path must be the path .* 'own_parts.None'"),
    ({"class_path": "no_such.Net"}, r"'no_such.Net': No module named 'no_such'"),
    (
        {"class_path": "torch.optim.SGD"},
        r"network.class_path must name a class that is a Module, or .* got 'torch.optim.SGD'",
    ),
    ({"class_path": "own_parts.annotations"}, r"must be the path of a class or function, got 'own_parts.annotations'"),
    ({"class_path": "os.system", "init_args": {"command": "true"}}, r"annotated to return one, got 'os.system'"),
    ({"class_path": "own_parts.number"}, r"network.class_path must make a Module, got a float"),
    ({"class_path": "own_parts.Blocks", "init_args": {"width": 2.5}}, r"network.width.*Expected a .*int.* 2.5"),
    ({"class_path": "own_parts.Blocks", "init_args": {"depth": 2}}, r"must be among dropout, width; got depth"),
    ({"class_path": "own_parts.Blocks", "init_args": {"width": -1}}, r"own_parts.Blocks cannot be made"),
    ({"class_path": "own_parts.Lookup", "init_args": {"made": False}}, r"Lookup cannot be made: KeyError: False"),
    (
        {"class_path": "own_parts.Lookup", "init_args": {"made": True}},
        r"network must take inputs .*: KeyError: 'width'",
    ),
    ({"class_path": "own_parts.flat"}, r"required: network.out_features"),
    ({"class_path": "own_parts.Maps"}, r"must give features \[N, d\], a tensor; for one input it gives \[1, 1, 8, 8\]"),
    (
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}},
        r"network must take inputs \[1, 1, 8, 8\] of torch.float32",
    ),
]


@pytest.mark.parametrize("network, message", WRONG)
def test_wrong_networks_are_named(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_module(config(network=network), DIGITS)


FORMS = [
    ({"class_path": ""}, r"network.class_path must be the path of a class"),
    ({"class_path": "Net"}, r"network.class_path must be .* got 'Net'"),
    ({"class_path": "a.Net", "args": {}}, r"network must be a mapping with class_path and init_args alone, got 'args'"),
    ({"class_path": "a.Net", "init_args": [1]}, r"network.init_args must be a mapping"),
    ({}, r"network.class_path must be .* got None"),
]


@pytest.mark.parametrize("network, message", FORMS)
def test_wrong_forms_are_named(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(network=network)


def test_options_of_a_named_network_are_not_for_a_class() -> None:
    with pytest.raises(ConfigError, match=r"network_options must hold out_features alone.* got hidden"):
        build_module(config(network=BLOCKS, network_options={"hidden": [3]}), DIGITS)


def test_set_puts_a_class_in_the_place_of_a_name() -> None:
    changes = ["network.class_path=own_parts.Blocks", "network.init_args.width=10", "optimizer.class_path=a.B"]
    found = apply_overrides({"network": "mlp"}, changes)
    assert found == {"network": BLOCKS, "optimizer": {"class_path": "a.B"}}
    with pytest.raises(ConfigError, match="network holds no options"):
        apply_overrides({"network": "mlp"}, ["network.init_args.width=10"])


def test_a_run_is_found_again(tmp_path: Path) -> None:
    """The class is in config.yaml, and read back from it for going on and for analyses."""
    own = config(network=BLOCKS)
    result = train_run(own, tmp_path)
    assert read_config(tmp_path / "config.yaml") == own
    assert load_run(tmp_path)[2].state_dict().keys() == build_module(own, DIGITS).state_dict().keys()
    assert train_run(own, tmp_path, resume=True) == result
    with pytest.raises(ConfigError, match="network must be"):
        train_run(own.replace(network={**BLOCKS, "init_args": {"width": 11}}), tmp_path, resume=True)


def test_another_class_begins_without_the_arguments_of_the_one_before(tmp_path: Path) -> None:
    base = {"network": {"class_path": "a.B", "init_args": {"width": 3}}, "data_options": {"root": "here", "seed": 1}}
    (tmp_path / "base.yaml").write_text(written(base))
    (tmp_path / "own.yaml").write_text("base: base.yaml\nnetwork: {class_path: c.D}\n")
    assert read_settings(tmp_path / "own.yaml")["network"] == {"class_path": "c.D"}
    changed = apply_overrides(base, ["network.class_path=c.D", "data_options.root=null"])
    assert changed == {"network": {"class_path": "c.D"}, "data_options": {"seed": 1}}
    assert apply_overrides(base, ["network.class_path=a.B"]) == base


def test_a_folder_of_an_earlier_version_that_kept_nothing_is_taken_again(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, warmup_epochs=0)
    earlier = {key: value for key, value in config.as_dict().items() if key not in ("freeze", "patience", "logger")}
    (tmp_path / "config.yaml").write_text(written(earlier))
    prepare_run(config, tmp_path, resume=False)
    (tmp_path / "config.yaml").write_text(written({"data": "digits-lt", "method": "ce"}))
    with pytest.raises(ConfigError, match="that is no run's"):
        prepare_run(config, tmp_path, resume=False)


def test_the_error_for_a_name_says_how_to_give_a_class() -> None:
    with pytest.raises(ConfigError, match=r"optimizer must be one of sgd.*optimizer\.class_path=PACKAGE\.NAME"):
        make_config({"optimizer": "adamw"})
