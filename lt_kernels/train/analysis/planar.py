"""Features of two numbers: where a method puts its classes, their weights and their regions, seen as they are."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import write_whole
from lt_kernels.train.analysis.directions import directions, directions_picture, directions_rows
from lt_kernels.train.analysis.plane_defaults import sees_directions
from lt_kernels.train.analysis.plots_classes import grid
from lt_kernels.train.analysis.tables import as_csv
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.methods.build import build_method
from lt_kernels.train.methods.method import MethodParts, Setting
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.networks import Pixels
from lt_kernels.train.model.readings import trained_head, weights_of
from lt_kernels.train.output import figures
from lt_kernels.train.run.build import effective, load_data
from lt_kernels.train.run.generators import random_states, restore_random_states
from lt_kernels.train.run.logs import EpochLog
from lt_kernels.train.run.training import deterministic, fit, order_of

CELLS = 400  # of the regions' grid, on a side
HIDDEN = 128


class PlanarNetwork(nn.Module):
    """Two hidden layers of 128 with ReLU, and two linear features of any sign: [N, ...] -> [N, 2].

    For a head that sees their directions alone the features may be `centred`: each has mean 0 and variance 1 in a
    batch, and in evaluation mode by the running means of the batches.
    """

    out_features = 2

    def __init__(self, in_features: int, centred: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False) if centred else None
        self.layers = nn.Sequential(
            nn.Linear(in_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
        )

    def forward(self, input: Tensor) -> Tensor:
        features = self.layers(input.flatten(1))
        if self.norm is None or (self.training and len(features) == 1):  # a single row has no variance
            return features
        return self.norm(features)


@dataclasses.dataclass(frozen=True)
class Plane:
    """A trained classifier in the plane: test `features` [N, 2] with `target` and `prediction` [N], class `weight`
    [C, 2] as the head uses it, `region`, which predicts the class of any points [P, 2], and the `directions` [C, 2] in
    which training moves the class weights, of `directions.directions`.
    """

    method: str
    counts: np.ndarray
    features: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    weight: np.ndarray
    region: Callable[[np.ndarray], np.ndarray]
    directions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def train_planar(config: TrainConfig) -> Plane:
    """Train the method of a config on its data with features in the plane; the global generators stay as they were.

    Errors: ConfigError where the inputs are no images, or the method has several networks.
    """
    data = load_data(config)
    if data.input_kind != "image":
        raise ConfigError(f"--data must have images for inputs, got {data.name!r} with {data.input_kind}")
    if not isinstance(data.train[0], torch.Tensor):
        raise ConfigError(f"--data must name a set that is held in memory, got {data.name}")
    before, threads = random_states(), torch.get_num_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        with deterministic(), tempfile.TemporaryDirectory() as folder:
            module = _module(config, data)
            log = EpochLog(Path(folder), data, config.epochs)
            fit(config, module, log, order_of(module, data), Path(folder), None)
    finally:
        restore_random_states(before)
        torch.set_num_threads(threads)
    module = module.cpu().eval()
    return _plane(config.method, module, data, _directions(module, data))


def _module(config: TrainConfig, data: LongTailedData) -> Classifier:
    config = effective(config)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002 (the state that other people's code draws from)
    torch.manual_seed(config.seed)
    network: nn.Module = PlanarNetwork(data.train[0][0].numel(), centred=sees_directions(config.method))
    if data.pixel_mean:
        network = Pixels(network, data.pixel_mean, data.pixel_deviation)
    return Classifier(config, network, _parts(config, data.class_counts))


def check_method(config: TrainConfig) -> None:
    """Raise what `train_planar` would for a method with several networks or weights a class; nothing is trained."""
    _parts(config, torch.tensor([2, 1]))


def _parts(config: TrainConfig, counts: Tensor) -> MethodParts:
    parts = build_method(config.method, Setting(counts, 2, config.epochs), config.method_options)
    if parts.experts > 1 or getattr(parts.head, "weight", torch.empty(0)).shape != (len(counts), 2):
        raise ConfigError(f"--methods must name methods with one network and one weight a class, got {config.method!r}")
    return parts


def _directions(module: Classifier, data: LongTailedData) -> dict[str, np.ndarray]:
    with torch.no_grad():
        features = torch.cat([module.network(part) for part in data.train[0].split(1024)])
    return directions(trained_head(module), module.regularizer, features, data.train[1])


@torch.no_grad()
def _plane(method: str, module: Classifier, data: LongTailedData, moved: dict[str, np.ndarray]) -> Plane:
    head: Any = trained_head(module)
    features, target = torch.cat([module.network(part) for part in data.test[0].split(1024)]), data.test[1]

    def region(points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module.classify(torch.as_tensor(points, dtype=torch.float32)).argmax(1).numpy()

    return Plane(
        method,
        data.class_counts.numpy(),
        features.numpy(),
        target.numpy(),
        module.classify(features).argmax(1).numpy(),
        weights_of(head, data.num_classes).numpy(),
        region,
        moved,
    )


def picture(planes: Sequence[Plane]) -> Figure:
    """A panel a method: test features as points, class weights as arrows, and the class predicted anywhere, shaded."""
    figure, axes = grid(len(planes), 4.6, 3.8, across=3)
    counts = planes[0].counts
    colours = figures.class_colours(len(counts))
    for axis, plane in zip(axes, planes, strict=True):
        _panel(axis, plane, colours)
    figures.class_legend(figure, axes[0], counts, colours)
    title = "Test features in the plane, predicted classes shaded"
    figures.heading(figure, f"{title}\n(arrows: class weights, one factor a panel)")
    return figure


def _panel(axis: Axes, plane: Plane, colours: np.ndarray) -> None:
    reach = 1.08 * float(np.quantile(np.abs(plane.features).max(1), 0.995)) or 1.0
    ticks = (np.arange(CELLS) + 0.5) / CELLS * 2 * reach - reach
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    shades = 1 - 0.3 * (1 - colours[plane.region(points)].reshape(CELLS, CELLS, 3))
    axis.imshow(shades, extent=(-reach, reach, -reach, reach), origin="lower", interpolation="nearest")
    axis.grid(False)
    axis.scatter(*plane.features.T, s=7, color=colours[plane.target], edgecolors="white", linewidths=0.25)
    arrows = plane.weight * 0.8 * reach / np.linalg.norm(plane.weight, axis=1).max().clip(1e-12)
    for index, (x, y) in enumerate(arrows):
        style = {"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "color": colours[index], "linewidth": 2}
        edge = [withStroke(linewidth=3.6, foreground="black")]
        axis.annotate("", (x, y), (0, 0), arrowprops={**style, "shrinkA": 0, "shrinkB": 0, "path_effects": edge})
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_aspect("equal")
    axis.locator_params(nbins=5)  # and powers of ten for long numbers: labels side by side do not touch
    axis.ticklabel_format(style="sci", scilimits=(-3, 4))
    axis.set_xlabel("first feature", fontsize=8)
    axis.set_ylabel("second feature", fontsize=8)
    rare = plane.counts[plane.target] < 20
    right = plane.prediction == plane.target
    few = f", few {100 * right[rare].mean():.0f} %" if rare.any() else ""
    figures.panel_title(axis, f"{figures.literal(plane.method)}: {100 * right.mean():.0f} %{few}")


def write_planes(planes: Sequence[Plane], out: Path) -> Path:
    """Write planar.png, planar_features.csv and planar_weights.csv into a folder that is there, and where a method has
    directions, planar_directions.png and .csv; return the first picture's path.
    """
    points = (
        [plane.method, *row]
        for plane in planes
        for row in zip(plane.target, plane.prediction, *plane.features.T, strict=True)
    )
    weights = (
        [plane.method, index, plane.counts[index], *row] for plane in planes for index, row in enumerate(plane.weight)
    )
    tables = {
        "planar_features.csv": as_csv(["method", "class", "predicted", "x", "y"], points),
        "planar_weights.csv": as_csv(["method", "class", "training_samples", "x", "y"], weights),
    }
    if any(plane.directions for plane in planes):
        head = ["method", "class", "training_samples", "part", "x", "y"]
        tables["planar_directions.csv"] = as_csv(head, directions_rows(planes))
        write_whole(out / "planar_directions.png", figures.png(directions_picture(planes)))
    for name, text in tables.items():
        write_whole(out / name, text)
    write_whole(out / "planar.png", figures.png(picture(planes)))
    return out / "planar.png"
