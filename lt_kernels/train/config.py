"""One training run as a frozen value: what may be set, and what each key allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from lt_kernels.data.samplers import SAMPLERS
from lt_kernels.system.spelling import did_you_mean
from lt_kernels.train import values
from lt_kernels.train.errors import ConfigError

THREADS = 4096
PROCESSES = 2**20
DAY = 86400  # seconds
# Where a run is computed and recorded, and not what: it may go on with others.
PLACEMENT = ("accumulate", "devices", "nodes", "strategy", "head", "timeout", "logger")
# of lightning.pytorch.loggers
LOGGERS = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger", "mlflow": "MLFlowLogger"}
SIDE = 8192  # pixels
POLY_POWER = 0.9  # what segmentation networks are trained with (Chen et al., 2018)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every setting of one run; two runs of equal configs on one machine give the same bits.

    Epochs and milestones count passes over the training set from 0; with `epoch_steps` an epoch ends after so many
    steps, on other samples each time (0: after all samples). `lr` is the peak rate, reached after `warmup_epochs` of
    linear warm-up; `gammas` multiply the peak rate (not the rate before) from each milestone on; `poly_power` is the
    exponent of the schedule poly. `sampler` is a name of `data.samplers.make_order`, `augment` one of AUGMENTATIONS or
    kornia:NAME with `augment_options`, `augment_views` the one of the views after the first (where a method has
    several), `augment_crop` the side of the crop that augmented scenes have (0: their shorter side); `record` keeps
    what the analyses draw over the epochs.
    `validation` above 0 puts so many training samples of each class, drawn with `seed`, in the place of the test set,
    to choose settings on (`data.validation_split`); with `patience` or `keep_best`, beside it. Then training ends once
    the mean class accuracy of these samples has not risen for `patience` epochs (0: never), and with `keep_best` the
    result, on the test set, is that of the epoch after which it was highest. `validate_every` and `checkpoint_epochs`
    are in epochs, `checkpoint_steps` in steps within an epoch (0: none); `threads` 0 leaves torch's own number of
    threads.

    `network`, `optimizer` and `schedule` may be {class_path, init_args}: a class of one's own or of a library.
    `schedule_interval` says after what such a schedule is stepped. The rest choose parameters by patterns such as
    `network.layers.0.*`, `*` standing for anything: `freeze` those that are not trained, `no_decay` those without
    weight decay; `lr_factors` and, by the depth of the network's blocks, `layer_decay` multiply learning rates.

    `batch_size` counts the samples of an optimiser's step, over all processes and its `accumulate` micro-batches.
    `devices` are the processes on each of `nodes` machines (0: as torchrun started them, else 1), `strategy` how the
    network is held on them, `head` whether each has all class weights; `timeout` is in seconds. `clip` is the largest
    norm of a step's gradient (0: any), `sync_batch_norm` whether batch norm's statistics are those of all processes.
    `logger` is one of LOGGERS or a class, which gets every epoch's row beside the run's own files.
    """

    data: str = "digits-lt"
    imbalance: float | None = None
    data_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: str | Mapping[str, Any] = "mlp"
    network_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str = "ce"
    method_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 100
    epoch_steps: int = 0
    batch_size: int = 64
    optimizer: str | Mapping[str, Any] = "sgd"
    lr: float = 0.1
    lr_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 5e-4
    no_decay: tuple[str, ...] = ()
    nesterov: bool = False
    warmup_epochs: int = 5
    schedule: str | Mapping[str, Any] = "cosine"
    schedule_interval: str = "epoch"
    milestones: tuple[int, ...] = ()
    gammas: tuple[float, ...] = ()
    poly_power: float = POLY_POWER
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    sampler: str = "instance"
    augment: str = "none"
    augment_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment_views: str = "same"
    augment_crop: int = 0
    record: bool = False
    precision: str = "32"
    clip: float = 0.0
    accumulate: int = 1
    devices: int = 0
    nodes: int = 0
    strategy: str = "ddp"
    head: str = "replicated"
    sync_batch_norm: bool = False
    timeout: int = 600
    logger: str | Mapping[str, Any] = "none"
    seed: int = 0
    validation: int = 0
    patience: int = 0
    keep_best: bool = False
    validate_every: int = 1
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, CHECKS[field.name](field.name, getattr(self, field.name)))
        _check_steps(self)
        _check_optimizer(self)

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)

    @property
    def stops(self) -> bool:
        """Whether samples held out for validation say when training ends, or which epoch is kept."""
        return self.patience > 0 or self.keep_best

    def settings(self) -> dict[str, Any]:
        """What makes a run the run that it is: `as_dict` without the keys of PLACEMENT."""
        return {key: value for key, value in self.as_dict().items() if key not in PLACEMENT}

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: what YAML, JSON and a checkpoint can hold."""
        return {key: _plain(getattr(self, key)) for key in FIELDS}


def judged_on(settings: Mapping[str, Any]) -> Literal["validation", "test"]:
    """What a run's accuracies are of: the test set, or training samples in its place."""
    stops = settings.get("patience") or settings.get("keep_best")
    return "validation" if settings.get("validation") and not stops else "test"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "data": values.name,
    "imbalance": values.number(1, optional=True),
    "data_options": values.options,
    "network": values.or_class(values.name),
    "network_options": values.options,
    "method": values.name,
    "method_options": values.options,
    "epochs": values.integer(1),
    "epoch_steps": values.integer(0),
    "batch_size": values.integer(1),
    "optimizer": values.or_class(values.choice("sgd")),
    "lr": values.number(0, open_low=True),
    "lr_factors": values.factors,
    "layer_decay": values.number(0, 1, open_low=True),
    "freeze": values.several(values.name, "a list of patterns"),
    "momentum": values.number(0, 1),
    "weight_decay": values.number(0),
    "no_decay": values.several(values.name, "a list of patterns"),
    "nesterov": values.flag,
    "warmup_epochs": values.integer(0),
    "schedule": values.or_class(values.choice("cosine", "step", "constant", "poly")),
    "schedule_interval": values.choice("epoch", "step"),
    "milestones": values.several(values.integer(0), "a list of epochs"),
    "gammas": values.several(values.number(0), "a list of factors"),
    "poly_power": values.number(0, open_low=True),
    "mixup_alpha": values.number(0),
    "cutmix_alpha": values.number(0),
    "sampler": values.choice(*SAMPLERS),
    "augment": values.name,
    "augment_options": values.options,
    "augment_views": values.name,
    "augment_crop": values.integer(0, SIDE),
    "record": values.flag,
    "precision": values.choice("32", "bf16", "fp16"),
    "clip": values.number(0),
    "accumulate": values.integer(1),
    "devices": values.integer(0, PROCESSES),
    "nodes": values.integer(0, PROCESSES),
    "strategy": values.choice("ddp", "fsdp"),
    "head": values.choice("replicated", "sharded"),
    "sync_batch_norm": values.flag,
    "timeout": values.integer(1, DAY),
    "logger": values.or_class(values.choice("none", *LOGGERS)),
    "seed": values.integer(0),
    "validation": values.integer(0),
    "patience": values.integer(0),
    "keep_best": values.flag,
    "validate_every": values.integer(1),
    "checkpoint_epochs": values.integer(1),
    "checkpoint_steps": values.integer(0),
    "threads": values.integer(0, THREADS),
}
FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def _check_steps(config: TrainConfig) -> None:
    if config.mixup_alpha and config.cutmix_alpha:
        raise values.reject("cutmix_alpha", config.cutmix_alpha, f"0 where mixup_alpha is {config.mixup_alpha}")
    if config.nesterov and config.momentum == 0:
        raise values.reject("nesterov", True, "false where momentum is 0")
    if len(config.milestones) != len(config.gammas):
        raise values.reject(
            "gammas", list(config.gammas), f"one factor for each of the {len(config.milestones)} milestones"
        )
    if list(config.milestones) != sorted(set(config.milestones)):
        raise values.reject("milestones", list(config.milestones), "increasing")
    if (config.schedule == "step") != bool(config.milestones):
        raise values.reject("milestones", list(config.milestones), "given with schedule: step, and only then")
    if config.accumulate > config.batch_size:
        raise values.reject("accumulate", config.accumulate, f"at most the batch_size, {config.batch_size}")
    if isinstance(config.schedule, str) and config.schedule_interval != "epoch":
        raise values.reject("schedule_interval", config.schedule_interval, "epoch, unless schedule is a class")
    if config.schedule != "poly" and config.poly_power != POLY_POWER:
        raise values.reject("poly_power", config.poly_power, "given with schedule: poly, and only then")


def _check_optimizer(config: TrainConfig) -> None:
    """Rates and decay are keys of their own, whatever the optimizer; momentum is SGD's."""
    if isinstance(config.optimizer, str):
        return
    for key in ("lr", "weight_decay"):
        if key in config.optimizer["init_args"]:
            given = config.optimizer["init_args"][key]
            raise values.reject(f"optimizer.init_args.{key}", given, f"left out: the key {key} says it")
    for key, usual in (("momentum", 0.9), ("nesterov", False)):
        if getattr(config, key) != usual:
            hint = f"left out where optimizer is not sgd: optimizer.init_args may have a {key}"
            raise values.reject(key, getattr(config, key), hint)


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of `allowed`, with the nearest as a hint."""
    names = list(allowed)
    hint = did_you_mean(str(name), names)
    return ConfigError(f"{kind} must be one of {', '.join(names)}; got {name!r}{hint}")


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """A checked config from a mapping; a key that does not exist is an error that names it.

    A recipe may hold more keys: `methods`, the options that a method has with this data set unless `method_options`
    says otherwise, `variants` for a comparison, and `published`, figures to compare with, which change nothing.
    """
    own = dict(settings)
    for key in ("published", "variants"):
        values.options(key, own.pop(key, None))
    methods = values.options("methods", own.pop("methods", None))
    if "base" in own:
        raise values.reject("base", own["base"], "named in a recipe's file")
    for key in own:
        if key not in FIELDS:
            raise unknown_name("config key", key, [*FIELDS, "methods", "published", "variants"])
    of_method = values.options(f"methods.{own.get('method')}", methods.get(str(own.get("method"))))
    own["method_options"] = {**of_method, **values.options("method_options", own.get("method_options"))}
    return TrainConfig(**own)
