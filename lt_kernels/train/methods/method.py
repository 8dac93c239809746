"""What a method is: one line of the registry, and what is made of it for one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

# The share of the epochs before the weights come in (160 of 200 epochs in Cao et al., 2019), the weights' beta, whether
# they sum to C, and what the mean divides by.
DEFERRED_DEFAULTS: Mapping[str, Any] = {
    "drw_start": 0.8,
    "drw_beta": 0.9999,
    "drw_normalize": True,
    "drw_average": "weighted",
}
# SphereFace's annealing, max(low, high / (1 + rate t)), t in steps of the optimiser (Liu et al., 2017).
ANNEALING_DEFAULTS: Mapping[str, Any] = {"annealing_high": 1000.0, "annealing_low": 5.0, "annealing_rate": 0.12}
# lambda(t) = strength (1 - t / T)^power, t in epochs.
REPULSION_DEFAULTS: Mapping[str, Any] = {
    "lwr_threshold": 0.4,
    "lwr_project": True,
    "lwr_strength": 1.0,
    "lwr_power": 2.0,
    "lwr_neighbours": "all",
    "lwr_skin": 0.1,
}
REPULSION_SUFFIX = "-lwr"
WORDS: Mapping[str, tuple[str, ...]] = {"lwr_project": ("raw",)}  # that an option takes beside true and false
# Options of any method, which go to its loss as they are; their defaults are those of the loss.
LOSS_OPTIONS: Mapping[str, Any] = {"label_smoothing": 0.0, "z_loss": 0.0, "softcap": 1.0}
# Options that a method may have which are settings of the run: how samples are drawn and mixed.
RUN_OPTIONS = ("sampler", "mixup_alpha", "cutmix_alpha")
# A second stage: its epochs as a share of the first stage's, its peak learning rate as a share of the first's.
STAGE_DEFAULTS: Mapping[str, Any] = {"second_share": 0.1, "second_rate": 1.0, "second_sampler": "class"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method needs to know of the run: `class_counts` [C], the features' width, the number of epochs, and the
    mesh of ranks over which the class weights are sharded, or None.
    """

    class_counts: Tensor
    in_features: int
    epochs: int
    mesh: Any = None

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.class_counts.numel())


Options = dict[str, Any]
LossFactory = Callable[[Setting, Options], nn.Module]
HeadFactory = Callable[[Setting, nn.Module, Options], nn.Module]
# The parts of a second stage: the head that it trains, and which of its parameters.
StageFactory = Callable[[Setting, nn.Module, Options], tuple[nn.Module, list[nn.Parameter]]]
# What is done to the trained head at the end, with the training set's features and classes, batch by batch.
Closing = Callable[[nn.Module, Iterable[tuple[Tensor, Tensor]]], None]
ClosingFactory = Callable[[Setting, Options], Closing]
# Logits [N, C] from the trained head and features [N, d]: where they are not simply the head's.
Readout = Callable[[Setting, Options], Callable[[nn.Module, Tensor], Tensor]]


@dataclasses.dataclass(frozen=True)
class Method:
    """One line of the registry: `defaults` are the options that may be set, with their values when they are not.

    `loss` takes those that no other part takes: a `head_options` name goes to the head's factory, a `readout_options`
    name to that of the read-out or the closing, a name of RUN_OPTIONS to the run. `source`: author and year. `views`:
    how often a batch is augmented.
    """

    title: str
    loss: LossFactory
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""
    head: Literal["linear", "cosine"] | HeadFactory = "linear"
    head_options: tuple[str, ...] = ()
    bias: bool = True
    deferred: bool = False
    annealed: bool = False
    repulsion: bool = False
    mixup: bool = True
    views: int = 1
    second: StageFactory | None = None
    readout: Readout | None = None
    readout_options: tuple[str, ...] = ()
    closing: ClosingFactory | None = None
    unit_rows: bool = False


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """What is trained after the first stage: `parameters` of `head`, for `epochs`, at `rate` times the peak rate."""

    head: nn.Module
    parameters: list[nn.Parameter]
    epochs: int
    rate: float
    sampler: str


@dataclasses.dataclass(frozen=True)
class MethodParts:
    """A method made for one run; a schedule is a function of the epoch, or None where nothing changes.

    `annealing` is one of the step, which counts the optimiser's steps from the first epoch on.
    """

    head: nn.Module
    weight: Callable[[int], Tensor | None] | None = None
    annealing: Callable[[int], float] | None = None
    regularizer: nn.Module | None = None
    strength: Callable[[int], float] | None = None
    second: SecondStage | None = None
    readout: Callable[[nn.Module, Tensor], Tensor] | None = None
    closing: Closing | None = None
    views: int = 1
    unit_rows: bool = False
    teacher: str = ""

    @property
    def experts(self) -> int:
        """How many networks the head wants side by side."""
        return int(getattr(self.head, "experts", 1))
