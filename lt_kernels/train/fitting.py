"""A run from Python, as from a notebook: the same settings, files and bits as `lt-kernels train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_kernels.train import TRAINER, need
from lt_kernels.train.config import TrainConfig, make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import Which
from lt_kernels.train.recipes import config_file, read_settings

if TYPE_CHECKING:
    from torch import Tensor

    from lt_kernels.train.model.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished run: its settings, its folder, and what result.json holds."""

    config: TrainConfig
    folder: Path
    result: Mapping[str, Any]

    @property
    def accuracy(self) -> dict[str, float]:
        """Percent by group of classes: many, medium, few, all, and the geometric mean `gm`."""
        return dict(self.result["accuracy"])

    @property
    def per_class(self) -> list[float]:
        """Percent of each class [C]."""
        return list(self.result["per_class"])

    def model(self, checkpoint: Which | None = None) -> Classifier:
        """The trained network with its head, in evaluation mode and on the CPU: inputs to logits or cosines [N, C].

        checkpoint: the state after the last epoch or the best one; None is the one whose accuracies the result has.
        """
        from lt_kernels.train.run.loading import load_run

        return load_run(self.folder, checkpoint)[2]

    def predict(self, inputs: Tensor, prior: str | None = None, checkpoint: Which | None = None) -> Tensor:
        """Probabilities [N, C] of inputs [N, ...] as the data set has them, as trained or under a class prior:
        `uniform`, `train` (that of the training set) or the path of a CSV file with the columns class and prior.

        Errors: ConfigError where the method has no probabilities, or its logits hold no prior that is known.
        """
        import torch

        from lt_kernels.train.run.loading import load_run
        from lt_kernels.train.serve.priors import prior_of
        from lt_kernels.train.serve.scoring import scorer_of, scores_of

        config, data, module = load_run(self.folder, checkpoint)
        scorer = scorer_of(config, data, module, prior_of(prior, data))
        return torch.cat([scores_of(scorer, part) for part in inputs.split(256)])


def fit(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = True,
    **changes: Any,
) -> Fitted:
    """Train one model, or go on with one, and return the finished run.

    config: a recipe's name, a YAML file, or settings; changes: settings in the place of those, such as `method="bs"`.
    out: the run's folder (None: runs/NAME-METHOD-seed-SEED). resume: go on from its last checkpoint; a run that is
    finished is returned as it is. quiet: without a bar. Same settings, same bits as `lt-kernels train`; several
    processes are for the command line alone.
    Errors: ConfigError naming the setting or the folder that cannot be used; MissingTrainer without the extra [train].
    """
    need(*TRAINER)
    settings, name = _settings(config)
    chosen = make_config({**settings, **changes})
    folder = Path(out) if out is not None else Path("runs") / f"{name}-{chosen.method}-seed-{chosen.seed}"
    from lt_kernels.train.output.screen import Screen
    from lt_kernels.train.run.training import train_run

    return Fitted(chosen, folder, train_run(chosen, folder, resume, None if quiet else Screen(stderr=True)))


def _settings(config: Any) -> tuple[dict[str, Any], str]:
    """Settings and the name of where they come from."""
    if isinstance(config, TrainConfig):
        return config.as_dict(), config.data
    if isinstance(config, Mapping):
        return dict(config), str(config.get("data", TrainConfig.data))
    if isinstance(config, (str, Path)):
        return read_settings(config_file(str(config))), Path(config).stem
    raise ConfigError(f"config must be a recipe's name, a file or settings, got {type(config).__name__}")
