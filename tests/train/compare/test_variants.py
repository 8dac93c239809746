"""Variants of a method in a comparison: their names, options and titles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.train.commands import named_methods
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.variants import config_of, title_of, variants_of
from lt_kernels.train.recipes import RECIPES, read_settings

SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "network": "mlp",
    "methods": {"bs-lwr": {"lwr_threshold": 0.0, "lwr_power": 1.0}},
    "variants": {"far": {"method": "bs-lwr", "lwr_threshold": 0.7}, "soft": {"method": "la", "tau": 0.5}},
}


def test_a_variant_is_its_method_with_options_over_the_recipes() -> None:
    config = config_of(SETTINGS, "far", seed=3)
    assert (config.method, config.seed) == ("bs-lwr", 3)
    assert config.method_options == {"lwr_threshold": 0.7, "lwr_power": 1.0}
    assert config_of(SETTINGS, "bs-lwr", 0).method_options == {"lwr_threshold": 0.0, "lwr_power": 1.0}
    assert title_of("soft", config_of(SETTINGS, "soft", 0).as_dict()) == "logit adjustment; tau 0.5"
    assert title_of("bs", config_of(SETTINGS, "bs", 0).as_dict()) == "balanced softmax"


def test_a_variant_may_be_trained_otherwise() -> None:
    heavy = {"method": "la", "tau": 0.5, "weight_decay": 0.02, "mixup_alpha": 0.4}
    drawn = {"method": "ce-sqrt", "sampler": "class"}
    settings = {**SETTINGS, "weight_decay": 0.001, "variants": {"heavy": heavy, "drawn": drawn}}
    config = config_of(settings, "heavy", seed=0)
    assert (config.weight_decay, config.mixup_alpha, config.method_options) == (0.02, 0.4, {"tau": 0.5})
    assert config_of(settings, "la", seed=0).weight_decay == 0.001
    config = config_of(settings, "drawn", seed=0)  # an option of the method stays one
    assert (config.sampler, config.method_options) == ("instance", {"sampler": "class"})
    with pytest.raises(ConfigError, match=r"method_options of la must be one of tau.*'seed'"):
        config_of({"variants": {"one": {"method": "la", "seed": 3}}}, "one", 0)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_variants_of_each_recipe_can_be_made(path: Path) -> None:
    settings = read_settings(path)
    assert [config_of(settings, name, 0).method for name in variants_of(settings)] == [
        variant["method"] for variant in variants_of(settings).values()
    ]


def test_names_may_stand_for_several() -> None:
    assert named_methods("ce, variants,bs", SETTINGS) == ["ce", "far", "soft", "bs"]
    every = named_methods("all", {"network": "words"})
    assert "bcl" in every
    assert "ce-mixup" not in every


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["far"], "variants must map"),
        ({"a b": {"method": "ce"}}, "variants must have names .*'a b'"),
        ({"bs": {"method": "ce"}}, "no method's .*got 'bs'"),
        ({"bs-lwr": {"method": "ce"}}, "got 'bs-lwr'"),
        ({"all": {"method": "ce"}}, "got 'all'"),
        ({"..": {"method": "ce"}}, r"got '\.\.'"),
        ({"far": {"tau": 1}}, r"variants\.far must be"),
        ({"far": "ce"}, r"variants\.far must be .*'ce'"),
    ],
)
def test_bad_variants_are_named(variants: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        variants_of({"variants": variants})


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"method": "balanced"}, "method .*'balanced'"),
        ({"method": "la", "tua": 1}, "method_options of la must be one of tau.*'tua'"),
    ],
)
def test_a_variant_that_cannot_be_made_is_named(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of({"variants": {"one": variant}}, "one", 0)


def test_variants_stand_in_the_table_under_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: digits-lt\nnetwork: mlp\nepochs: 2\nwarmup_epochs: 1\nvariants:\n  soft: {method: la, tau: 0.5}\n"
    )
    words = ["compare", "--data", "digits-lt", "--config", str(recipe), "--methods", "la,variants", "--seeds", "1"]
    assert cli.main([*words, "--jobs", "1", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "soft" in capsys.readouterr().out
    assert (tmp_path / "out" / "soft" / "seed-0" / "result.json").exists()
    assert "soft: logit adjustment; tau 0.5" in (tmp_path / "out" / "report.html").read_text()
