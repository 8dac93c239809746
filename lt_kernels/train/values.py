"""What a setting may be: one check for each kind of value, which returns it as it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lt_kernels.train.errors import ConfigError

MOST = 2**63 - 1  # what torch takes for a seed or a size


def reject(key: str, value: object, allowed: str) -> ConfigError:
    """The error for a value of a key."""
    return ConfigError(f"{key} must be {allowed}, got {value!r}")


def integer(low: int, high: int = MOST) -> Callable[[str, Any], int]:
    """A whole number."""
    allowed = f"an integer of at least {low}"

    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            above = isinstance(value, int) and value > high
            raise reject(key, value, f"{allowed} and at most {high}" if above else allowed)
        return value

    return check


def as_float(value: Any) -> float | None:
    """YAML 1.1 reads 5e-4 (no dot) as a string: accept what Python would."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def number(
    low: float, high: float = math.inf, open_low: bool = False, optional: bool = False
) -> Callable[[str, Any], float | None]:
    """A finite number; YAML's words for numbers are read as such."""
    bounds = f"{'above' if open_low else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")

    def check(key: str, value: Any) -> float | None:
        if optional and value is None:
            return None
        number = as_float(value)
        if number is None or not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
            raise reject(key, value, f"a finite number {bounds}" + (", or left out" if optional else ""))
        return number

    return check


def choice(*allowed: str) -> Callable[[str, Any], str]:
    """One of some words."""

    def check(key: str, value: Any) -> str:
        if str(value) not in allowed:
            raise reject(key, value, "one of " + ", ".join(allowed))
        return str(value)

    return check


def flag(key: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise reject(key, value, "true or false")
    return value


def name(key: str, value: Any) -> str:
    """A word that is not empty."""
    if not isinstance(value, str) or not value:
        raise reject(key, value, "a name")
    return value


def options(key: str, value: Any) -> dict[str, Any]:
    """A mapping of names to plain values; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise reject(key, value, "a mapping of option names to values")
    for name, item in value.items():
        check_plain(f"{key}.{name}", item)
    return dict(value)


def check_plain(key: str, value: Any) -> None:
    """What YAML, JSON and a checkpoint hold, and torch takes: no dates, no sets, no numbers beyond its own."""
    if isinstance(value, Mapping):
        options(key, value)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_plain(f"{key}[{index}]", item)
    elif isinstance(value, int):
        integer(-MOST)(key, value) if not isinstance(value, bool) else None
    elif not isinstance(value, (str, float, type(None))):
        raise reject(key, value, "a number, a word, true or false, a list or a mapping")


def several(check: Callable[[str, Any], Any], allowed: str) -> Callable[[str, Any], tuple[Any, ...]]:
    """A list, each of whose values `check` takes."""

    def check_all(key: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise reject(key, value, allowed)
        return tuple(check(f"{key}[{index}]", item) for index, item in enumerate(value))

    return check_all


def factors(key: str, value: Any) -> dict[str, float]:
    """A mapping of patterns to factors above 0."""
    return {name: number(0, open_low=True)(f"{key}.{name}", item) for name, item in options(key, value).items()}  # type: ignore[misc]


def or_class(check: Callable[[str, Any], str]) -> Callable[[str, Any], str | dict[str, Any]]:
    """A word that `check` takes, or a class or function by its path: {class_path: PACKAGE.NAME, init_args: {...}}."""

    def check_either(key: str, value: Any) -> str | dict[str, Any]:
        if not isinstance(value, Mapping):
            try:
                return check(key, value)
            except ConfigError as error:
                raise ConfigError(f"{error}; or a class by its path, {key}.class_path=PACKAGE.NAME") from None
        path = value.get("class_path")
        if not isinstance(path, str) or "." not in path.strip("."):
            raise reject(f"{key}.class_path", path, "the path of a class or function, such as torch.optim.AdamW")
        for name in value:
            if name not in ("class_path", "init_args"):
                raise reject(key, name, "a mapping with class_path and init_args alone")
        return {"class_path": path, "init_args": options(f"{key}.init_args", value.get("init_args"))}

    return check_either


def title(value: str | Mapping[str, Any]) -> str:
    """What a setting that `or_class` takes is called where it is shown: the word, or the name of the class."""
    return value if isinstance(value, str) else str(value["class_path"]).rpartition(".")[2]
