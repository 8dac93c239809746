"""Recipes: files of settings, found by the name of a data set, built on one another, and changed by `--set`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from lt_kernels.system.spelling import did_you_mean
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.plainyaml import parse, read_yaml

RECIPES = Path(str(resources.files("lt_kernels"))) / "recipes"  # those of the package
FOLDERS = (Path("recipes"), RECIPES)  # one's own come first
LEVELS = 8  # recipes that build on one another
# What a recipe does not take from its base: figures and ablations belong to the settings that they were made with.
OWN = ("published", "variants")


def every_recipe() -> dict[str, Path]:
    """Every recipe by its name: those in recipes/ and the package's; of two with one name the one in recipes/."""
    found = {path.stem: path for folder in reversed(FOLDERS) for path in folder.glob("*.yaml")}
    return {name: found[name] for name in sorted(found)}


def find_recipe(data: str) -> Path:
    """The default settings of a data set: the recipe of its name. Errors: ConfigError naming --data."""
    known = every_recipe()
    if data in known:
        return known[data]
    allowed = f"one of {', '.join(known)}, or --config name its settings"
    raise ConfigError(f"--data must be {allowed}, got {data!r}{did_you_mean(data, known)}")


def config_file(config: str) -> Path:
    """What --config names: a file, or else the recipe of that name, with or without .yaml. Errors: ConfigError."""
    known, name = every_recipe(), config.removesuffix(".yaml")
    if name in known and not os.path.isfile(config):
        return known[name]
    if os.path.exists(config):
        return Path(config)
    hint = did_you_mean(Path(config).stem, known)
    raise ConfigError(f"config {config!r} cannot be read: it must be a file or what `lt-kernels recipes` lists{hint}")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a YAML file holds, put over those of the recipe that it names as its `base`, if it does.

    A mapping is merged with that of the base key by key, null takes a key of the base away, and any other value stands
    in the place of the base's. Nothing of OWN is taken from a base. Errors: ConfigError naming the file.
    """
    files, layers = [Path(path)], [_mapping(path)]
    while "base" in layers[-1]:
        base = _base_of(files[-1], layers[-1].pop("base"))
        if any(base.resolve() == file.resolve() for file in files):
            way = " -> ".join(str(file) for file in (*files, base))
            raise ConfigError(f"config {str(path)!r}: base must not lead in a circle, got {way}")
        if len(files) == LEVELS:
            raise ConfigError(
                f"config {str(path)!r}: base must lead to at most {LEVELS - 1} recipes, got {str(base)!r} too"
            )
        files.append(base)
        layers.append(_mapping(base))
    settings = layers.pop()
    while layers:
        settings = _merged({key: value for key, value in settings.items() if key not in OWN}, layers.pop())
    return settings


def _mapping(path: str | Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"config {str(path)!r} must hold `key: value` lines, got {type(content).__name__}")
    return content


def _base_of(file: Path, name: object) -> Path:
    """The file that `base: name` in `file` stands for."""
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        allowed = "the path of a recipe, from this one's folder, recipes/ or the package's recipes down"
        raise ConfigError(f"config {str(file)!r}: base must be {allowed}, got {name!r}")
    for folder in (file.parent, *FOLDERS):
        if os.path.isfile(folder / name):
            return folder / name
    raise ConfigError(
        f"config {str(file)!r}: base must be a recipe beside it, in recipes/ or of the package; got {name!r}"
    )


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in own.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            known = result.get(key)
            result[key] = _merged(_beneath(known, value.get("class_path")), value)
        else:
            result[key] = value
    return result


def _beneath(known: Any, class_path: Any) -> dict[str, Any]:
    """What another mapping is put over: the arguments of a class are left out where that names another class."""
    found = dict(known) if isinstance(known, Mapping) else {}
    if class_path is not None and found.get("class_path", class_path) != class_path:
        found.pop("init_args", None)
    return found


def apply_overrides(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Settings with `key=value` changes applied; `method_options.alpha=0.5` reaches inside a mapping, values are read
    as YAML. Within a mapping null takes a key away, and another `class_path` the arguments of the class before it.
    """
    result = copy.deepcopy(dict(settings))
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set must be key=value, got {item!r}")
        value = parse(text, f"--set {item!r}") if text else ""
        *outer, last = key.strip().split(".")
        inside: Any = result
        for name, following in zip(outer, [*outer, last][1:], strict=True):
            if following == "class_path" and isinstance(inside.get(name), str):
                inside[name] = {}  # a class stands in the place of a name
            inside = inside.setdefault(name, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"--set {item!r}: {name} holds no options")
        if last == "class_path" and inside.get(last, value) != value:
            inside.pop("init_args", None)
        inside[last] = value
        if value is None and outer:  # as in a file: null takes an option away
            del inside[last]
    return result


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """The config of a YAML file, after `key=value` changes."""
    return make_config(apply_overrides(read_settings(path), overrides))
