"""Recipes that build on one another: what is taken over, what a run keeps of it, and what bad bases get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the extra [train] is not installed")

import yaml

from lt_kernels import cli
from lt_kernels.train import recipes
from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.recipes import LEVELS, RECIPES, config_file, find_recipe, read_config, read_settings

STATED = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))}
DERIVED = [name for name, stated in STATED.items() if "base" in stated]
QUICK = "data: digits-lt\nepochs: 2\nwarmup_epochs: 0\nlr: 0.05\nthreads: 1\nnetwork_options: {hidden: [16]}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to write recipes into, which commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def leaves(settings: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is no mapping, by the keys that lead to it."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in settings.items():
        found.update(leaves(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value})
    return found


@pytest.mark.parametrize("name", STATED)
def test_a_recipe_loads_and_says_nothing_that_its_base_says(name: str) -> None:
    stated = dict(STATED[name])
    settings = read_settings(find_recipe(name))
    make_config(settings)
    base = stated.pop("base", None)
    assert "base" not in settings
    if base is None:
        assert settings == stated
        return
    above = leaves(read_settings(RECIPES / base))
    own = {keys: value for keys, value in leaves(stated).items() if keys[0] not in recipes.OWN}
    assert stated, "a recipe has settings or variants of its own"
    assert [keys for keys, value in own.items() if value is not None and above.get(keys) == value] == []
    taken = [keys for keys, value in own.items() if value is None]
    assert [keys for keys in taken if not any(known[: len(keys)] == keys for known in above)] == []
    whole = leaves(settings)
    assert {keys: whole.get(keys) for keys in own} == own
    assert settings.get("published") == stated.get("published")


def test_most_recipes_build_on_another() -> None:
    assert len(DERIVED) > len(STATED) / 2


def test_mappings_are_merged_key_by_key(folder: Path) -> None:
    write(
        folder,
        a="epochs: 5\nlr: 0.1\nmilestones: [1, 2]\nmethods: {cb: {beta: 0.9, gamma: 1}, ce: {}}\n",
        b="base: a.yaml\nlr: 0.2\nmilestones: [3]\nmethods: {cb: {gamma: 2}, bs: {}}\n",
        c="base: b.yaml\nepochs: 7\n",
    )
    merged = {
        "epochs": 5,
        "lr": 0.2,
        "milestones": [3],
        "methods": {"cb": {"beta": 0.9, "gamma": 2}, "ce": {}, "bs": {}},
    }
    assert read_settings("b.yaml") == merged
    assert read_settings("c.yaml") == {**merged, "epochs": 7}


def test_null_takes_a_key_of_the_base_away(folder: Path) -> None:
    write(
        folder,
        a="imbalance: 10\nnetwork_options: {hidden: [8], other: 1}\nmethods: {cb: {beta: 0.9}}\n",
        b="base: a.yaml\nimbalance: null\nnetwork_options: {other: null}\nmethods: null\nlr: null\n",
    )
    assert read_settings("b.yaml") == {"network_options": {"hidden": [8]}}


def test_figures_and_ablations_are_a_recipes_own(folder: Path) -> None:
    write(
        folder,
        a="epochs: 5\npublished: {ce: {all: 50.0}}\nvariants: {soft: {method: la, tau: 0.5}}\n",
        b="base: a.yaml\n",
        c="base: a.yaml\npublished: {bs: {all: 60.0}}\n",
    )
    assert read_settings("b.yaml") == {"epochs": 5}
    assert read_settings("c.yaml") == {"epochs": 5, "published": {"bs": {"all": 60.0}}}


def test_a_base_stands_beside_the_recipe_or_among_the_recipes(folder: Path) -> None:
    (folder / "mine" / "parts").mkdir(parents=True)
    write(folder / "mine" / "parts", a="epochs: 3\n")
    write(folder / "mine", b="base: parts/a.yaml\n", c="base: cifar10-lt-50.yaml\nepochs: 1\n")
    assert read_settings("mine/b.yaml") == {"epochs": 3}
    config = read_config("mine/c.yaml")
    assert (config.data, config.imbalance, config.epochs) == ("cifar10-lt", 50, 1)
    write(folder / "mine", **{"cifar10-lt-50": "epochs: 9\n"})
    assert read_settings("mine/c.yaml") == {"epochs": 1}


CHAIN = {f"a{level}": f"base: a{level + 1}.yaml\n" for level in range(LEVELS)}
BAD = {
    "a file that is not there": (
        {"a0": "base: none.yaml\n"},
        r"config 'a0.yaml': base must be a recipe .* 'none.yaml'",
    ),
    "itself": ({"a0": "base: a0.yaml\n"}, r"config 'a0.yaml': base must not lead in a circle, got a0.yaml -> a0.yaml"),
    "a circle": (
        {"a0": "base: a1.yaml\n", "a1": "base: a2.yaml\n", "a2": "base: a1.yaml\n"},
        r"config 'a0.yaml': base must not lead in a circle, got a0.yaml -> a1.yaml -> a2.yaml -> a1.yaml",
    ),
    "too many": (
        {**CHAIN, f"a{LEVELS}": "epochs: 1\n"},
        rf"config 'a0.yaml': base must lead to at most {LEVELS - 1} recipes, got 'a{LEVELS}.yaml' too",
    ),
    "no list": ({"a0": "base: a1.yaml\n", "a1": "[1]\n"}, "config 'a1.yaml' must hold `key: value` lines, got list"),
    "no YAML": ({"a0": "base: a1.yaml\n", "a1": "a: [\n"}, "config 'a1.yaml' is not YAML"),
    "a folder": ({"a0": "base: .\n"}, r"config 'a0.yaml': base must be a recipe .* got '\.'"),
    "a folder above": ({"a0": "base: ../a0.yaml\n"}, r"config 'a0.yaml': base must be the path .* got '\.\./a0.yaml'"),
    "a whole path": ({"a0": "base: /etc/a.yaml\n"}, "config 'a0.yaml': base must be the path .* got '/etc/a.yaml'"),
    "a number": ({"a0": "base: 3\n"}, "config 'a0.yaml': base must be the path .* got 3"),
    "nothing": ({"a0": "base:\n"}, "config 'a0.yaml': base must be the path .* got None"),
    "several": ({"a0": "base: [a1.yaml, a2.yaml]\n"}, "config 'a0.yaml': base must be the path .* got \\['a1.yaml'"),
    "a long name": ({"a0": f"base: '{'x' * 5000}'\n"}, "config 'a0.yaml': base must be a recipe beside it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_base_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    texts, message = BAD[name]
    write(folder, **texts)
    with pytest.raises(ConfigError, match=message):
        read_settings("a0.yaml")
    for command in (["train"], ["compare", "--data", "digits-lt", "--methods", "ce"]):
        assert cli.main([*command, "--config", "a0.yaml", "--out", "run"]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"lt-kernels {command[0]}: config 'a")
        assert line.count("\n") == 1
    assert not (folder / "run").exists()


def test_a_config_is_a_file_or_the_name_of_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = RECIPES / "digits-lt.yaml"
    assert [config_file(name) for name in ("digits-lt", "digits-lt.yaml", str(ours))] == [ours] * 3
    (folder / "digits-lt").mkdir()  # what a run may be kept in
    assert config_file("digits-lt") == ours
    (folder / "recipes").mkdir()
    write(folder / "recipes", **{"digits-lt": QUICK, "own": QUICK})
    own = Path("recipes") / "digits-lt.yaml"
    assert config_file("digits-lt") == find_recipe("digits-lt") == own
    assert config_file("own") == Path("recipes") / "own.yaml"
    write(folder, **{"digits-lt": QUICK})
    assert config_file("digits-lt.yaml") == Path("digits-lt.yaml")
    assert config_file("digits-lt") == own
    for command in (["train"], ["compare", "--data", "digits-lt", "--methods", "ce"], ["shift", "--methods", "ce"]):
        assert cli.main([*command, "--config", "recipes/digit-lt.yaml"]) == 2
        line = capsys.readouterr().err
        assert "config 'recipes/digit-lt.yaml' cannot be read" in line
        assert line.endswith("(did you mean 'digits-lt'?)\n")
    assert cli.main(["compare", "--data", "digit-lt", "--methods", "ce"]) == 2
    assert "got 'digit-lt' (did you mean 'digits-lt'?)" in capsys.readouterr().err


def test_a_base_is_named_in_a_file_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, a=QUICK)
    assert cli.main(["train", "--config", "a.yaml", "--set", "base=a.yaml"]) == 2
    assert "base must be named in a recipe's file, got 'a.yaml'" in capsys.readouterr().err


def test_a_run_keeps_the_whole_of_its_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="the extra [train] is not installed")
    pytest.importorskip("sklearn", reason="the extra [train] is not installed")
    write(folder, a=QUICK + "methods: {la: {tau: 0.5}}\n", b="base: a.yaml\nmethod: la\nseed: 3\n")
    assert cli.main(["train", "--config", "b.yaml", "--out", "run", "--quiet", "--set", "epochs=1"]) == 0
    stored = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert "base" not in stored
    assert stored == read_config("b.yaml", ["epochs=1"]).as_dict()
    expected = {"seed": 3, "epochs": 1, "lr": 0.05, "network_options": {"hidden": [16]}, "method_options": {"tau": 0.5}}
    assert {key: stored[key] for key in expected} == expected
    shown = capsys.readouterr().out
    for name in ("a", "b"):
        (folder / f"{name}.yaml").unlink()
    assert cli.main(["train", "--resume", "--out", "run", "--quiet"]) == 0
    assert capsys.readouterr().out == shown


def test_a_comparison_keeps_the_whole_of_its_settings(folder: Path) -> None:
    for module in ("lightning", "sklearn", "matplotlib"):
        pytest.importorskip(module, reason="the extra [train] is not installed")
    write(folder, a=QUICK + "variants: {soft: {method: la}}\n", b="base: a.yaml\nlr: 0.1\nepochs: 1\n")
    words = [
        "compare",
        "--config",
        "b.yaml",
        "--data",
        "digits-lt",
        "--methods",
        "ce,bs",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    assert cli.main([*words, "--quiet", "--out", "both"]) == 0
    stored = yaml.safe_load((folder / "both" / "comparison.yaml").read_text())
    assert stored == {**yaml.safe_load(QUICK), "lr": 0.1, "epochs": 1, "methods_compared": ["ce", "bs"], "seeds": 1}
    run = yaml.safe_load((folder / "both" / "bs" / "seed-0" / "config.yaml").read_text())
    assert (run["lr"], run["epochs"], run["network_options"]) == (0.1, 1, {"hidden": [16]})
