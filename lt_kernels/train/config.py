"""One training run as a frozen value: what may be set, and what each key allows."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lt_kernels.data.samplers import SAMPLERS
from lt_kernels.train.errors import ConfigError

MOST = 2**63 - 1  # what torch takes for a seed or a size
THREADS = 4096
SIDE = 8192  # pixels
POLY_POWER = 0.9  # what segmentation networks are trained with (Chen et al., 2018)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every setting of one run; two runs of equal configs on one machine give the same bits.

    Epochs and milestones count passes over the training set from 0; with `epoch_steps` an epoch ends after so many
    steps, on other samples each time (0: after all samples). `lr` is the peak rate, reached after `warmup_epochs` of
    linear warm-up; `gammas` multiply the peak rate (not the rate before) from each milestone on; `poly_power` is the
    exponent of the schedule poly. `sampler` is a name of `data.samplers.make_order`, `augment` one of AUGMENTATIONS,
    `augment_views` the one of the views after the first (where a method has several), `augment_crop` the side of the
    crop that augmented scenes have (0: their shorter side); `record` keeps what the analyses draw over the epochs.
    `validation` above 0 puts so many training samples of each class, drawn with `seed`, in the place of the test set,
    to choose settings on (`data.validation_split`). `validate_every` and `checkpoint_epochs` are in epochs,
    `checkpoint_steps` in steps within an epoch (0: none);
    `threads` 0 leaves torch's own number of threads.
    """

    data: str = "digits-lt"
    imbalance: float | None = None
    data_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: str = "mlp"
    network_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str = "ce"
    method_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 100
    epoch_steps: int = 0
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    warmup_epochs: int = 5
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gammas: tuple[float, ...] = ()
    poly_power: float = POLY_POWER
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    sampler: str = "instance"
    augment: str = "none"
    augment_views: str = "same"
    augment_crop: int = 0
    record: bool = False
    precision: str = "32"
    seed: int = 0
    validation: int = 0
    validate_every: int = 1
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, CHECKS[field.name](field.name, getattr(self, field.name)))
        _check_steps(self)

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: what YAML, JSON and a checkpoint can hold."""
        return {key: _plain(getattr(self, key)) for key in FIELDS}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _reject(key: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{key} must be {allowed}, got {value!r}")


def _integer(low: int, high: int = MOST) -> Callable[[str, Any], int]:
    allowed = f"an integer of at least {low}"

    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            above = isinstance(value, int) and value > high
            raise _reject(key, value, f"{allowed} and at most {high}" if above else allowed)
        return value

    return check


def _as_float(value: Any) -> float | None:
    """YAML 1.1 reads 5e-4 (no dot) as a string: accept what Python would."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _number(
    low: float, high: float = math.inf, open_low: bool = False, optional: bool = False
) -> Callable[[str, Any], float | None]:
    bounds = f"{'above' if open_low else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")

    def check(key: str, value: Any) -> float | None:
        if optional and value is None:
            return None
        number = _as_float(value)
        if number is None or not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
            raise _reject(key, value, f"a finite number {bounds}" + (", or left out" if optional else ""))
        return number

    return check


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if str(value) not in allowed:
            raise _reject(key, value, "one of " + ", ".join(allowed))
        return str(value)

    return check


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _reject(key, value, "true or false")
    return value


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _reject(key, value, "a name")
    return value


def _options(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _reject(key, value, "a mapping of option names to values")
    for name, item in value.items():
        _check_plain(f"{key}.{name}", item)
    return dict(value)


def _check_plain(key: str, value: Any) -> None:
    """What YAML, JSON and a checkpoint hold, and torch takes: no dates, no sets, no numbers beyond its own."""
    if isinstance(value, Mapping):
        _options(key, value)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(f"{key}[{index}]", item)
    elif isinstance(value, int):
        _integer(-MOST)(key, value) if not isinstance(value, bool) else None
    elif not isinstance(value, (str, float, type(None))):
        raise _reject(key, value, "a number, a word, true or false, a list or a mapping")


def _several(check: Callable[[str, Any], Any], allowed: str) -> Callable[[str, Any], tuple[Any, ...]]:
    def check_all(key: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _reject(key, value, allowed)
        return tuple(check(f"{key}[{index}]", item) for index, item in enumerate(value))

    return check_all


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "data": _name,
    "imbalance": _number(1, optional=True),
    "data_options": _options,
    "network": _name,
    "network_options": _options,
    "method": _name,
    "method_options": _options,
    "epochs": _integer(1),
    "epoch_steps": _integer(0),
    "batch_size": _integer(1),
    "lr": _number(0, open_low=True),
    "momentum": _number(0, 1),
    "weight_decay": _number(0),
    "nesterov": _flag,
    "warmup_epochs": _integer(0),
    "schedule": _choice("cosine", "step", "constant", "poly"),
    "milestones": _several(_integer(0), "a list of epochs"),
    "gammas": _several(_number(0), "a list of factors"),
    "poly_power": _number(0, open_low=True),
    "mixup_alpha": _number(0),
    "cutmix_alpha": _number(0),
    "sampler": _choice(*SAMPLERS),
    "augment": _name,
    "augment_views": _name,
    "augment_crop": _integer(0, SIDE),
    "record": _flag,
    "precision": _choice("32", "bf16"),
    "seed": _integer(0),
    "validation": _integer(0),
    "validate_every": _integer(1),
    "checkpoint_epochs": _integer(1),
    "checkpoint_steps": _integer(0),
    "threads": _integer(0, THREADS),
}
FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def _check_steps(config: TrainConfig) -> None:
    if config.mixup_alpha and config.cutmix_alpha:
        raise _reject("cutmix_alpha", config.cutmix_alpha, f"0 where mixup_alpha is {config.mixup_alpha}")
    if config.nesterov and config.momentum == 0:
        raise _reject("nesterov", True, "false where momentum is 0")
    if len(config.milestones) != len(config.gammas):
        raise _reject("gammas", list(config.gammas), f"one factor for each of the {len(config.milestones)} milestones")
    if list(config.milestones) != sorted(set(config.milestones)):
        raise _reject("milestones", list(config.milestones), "increasing")
    if (config.schedule == "step") != bool(config.milestones):
        raise _reject("milestones", list(config.milestones), "given with schedule: step, and only then")
    if config.schedule != "poly" and config.poly_power != POLY_POWER:
        raise _reject("poly_power", config.poly_power, "given with schedule: poly, and only then")


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of `allowed`, with the nearest as a hint."""
    names = list(allowed)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ConfigError(f"{kind} must be one of {', '.join(names)}; got {name!r}{hint}")


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """A checked config from a mapping; a key that does not exist is an error that names it.

    A recipe may hold more keys: `methods`, the options that a method has with this data set unless `method_options`
    says otherwise, `variants` for a comparison, and `published`, figures to compare with, which change nothing.
    """
    own = dict(settings)
    for key in ("published", "variants"):
        _options(key, own.pop(key, None))
    methods = _options("methods", own.pop("methods", None))
    if "base" in own:
        raise _reject("base", own["base"], "named in a recipe's file")
    for key in own:
        if key not in FIELDS:
            raise unknown_name("config key", key, [*FIELDS, "methods", "published", "variants"])
    of_method = _options(f"methods.{own.get('method')}", methods.get(str(own.get("method"))))
    own["method_options"] = {**of_method, **_options("method_options", own.get("method_options"))}
    return TrainConfig(**own)
