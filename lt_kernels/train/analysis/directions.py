"""What pulls and pushes each class weight in the plane: the parts of the loss's gradient, and the repulsion's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from lt_kernels.losses.base import Loss
from lt_kernels.train.analysis.plots_classes import grid
from lt_kernels.train.output import figures

# Of each part: what it is, and the colour of its arrows.
PARTS = {
    "attraction": ("attraction by the class's own samples", figures.INDIGO),
    "repulsion": ("repulsion by the samples of other classes", figures.ROSE),
    "regularizer": ("logit-weight repulsion, by the other class weights", "black"),
}
SHORTEST = 1e-12  # a part below this share of the longest one of its kind is rounding


def directions(head: Any, regularizer: nn.Module | None, features: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    """The parts of the descent direction of each class weight, [C, d] each; none where a row has no loss of its own.

    Of the mean loss over `features` [N, d] of the training set, as `target` [N] says: "attraction", the part of the
    class's own samples, and "repulsion", that of all others. "regularizer": of the regularizer at strength 1.
    """
    parts: dict[str, np.ndarray] = {}
    loss = getattr(head, "loss", None)
    if isinstance(loss, Loss) and not (loss.needs_features or loss.needs_logits):
        head = copy.deepcopy(head).requires_grad_(True)
        head.loss.reduction = "none"
        rows = head(features.detach(), target)
        pulls = torch.stack([_gradient(rows[target == index].sum(), head.weight) for index in range(len(head.weight))])
        own = pulls.diagonal(dim1=0, dim2=1).T
        parts = {"attraction": -own / len(target), "repulsion": (own - pulls.sum(0)) / len(target)}
    if regularizer is not None:
        weight = head.weight.detach().requires_grad_(True)
        parts["regularizer"] = -_gradient(regularizer(weight), weight)
    return {name: part.cpu().numpy() for name, part in parts.items()}


def _gradient(loss: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


def directions_picture(planes: Sequence[Any]) -> Figure:
    """A panel a method: class weights as lines, and at the end of each, the directions that move it."""
    shown = [plane for plane in planes if plane.directions]
    figure, axes = grid(len(shown), 4.6, 4.4, across=3)
    classes = len(shown[0].counts)
    colours = figures.class_colours(classes)
    for axis, plane in zip(axes, shown, strict=True):
        _panel(axis, plane, colours)
    figures.class_legend(figure, axes[0], shown[0].counts, colours)
    there = [part for name, part in PARTS.items() if any(name in plane.directions for plane in shown)]
    lines = [axes[0].plot([], [], color=colour, linewidth=2, label=label)[0] for label, colour in there]
    figure.legend(handles=lines, loc="outside lower center", frameon=False, ncols=3 if len(axes) > 2 else 1)
    title = "Class weights, and the directions in which training moves them"
    figures.heading(figure, f"{title}\n(arrows of equal length)")
    return figure


def _panel(axis: Axes, plane: Any, colours: np.ndarray) -> None:
    reach = 1.35 * float(np.linalg.norm(plane.weight, axis=1).max()) or 1.0
    for weight, colour in zip(plane.weight, colours, strict=True):
        axis.plot([0, weight[0]], [0, weight[1]], color="0.75", linewidth=1.2, zorder=1)
        axis.plot(*weight, "o", color=colour, markeredgecolor="black", markeredgewidth=0.6, zorder=3)
    for name, part in plane.directions.items():
        length = np.linalg.norm(part, axis=1)
        for weight, step, size in zip(plane.weight, part, length, strict=True):
            if size > SHORTEST * length.max():
                end = weight + 0.24 * reach * step / size
                style = {"arrowstyle": "-|>,head_length=0.4,head_width=0.2", "color": PARTS[name][1], "linewidth": 1.6}
                axis.annotate("", end, weight, arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=2)
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_aspect("equal")
    axis.locator_params(nbins=5)
    axis.set_xlabel("first component [1 / features' unit]", fontsize=8)
    axis.set_ylabel("second component", fontsize=8)
    figures.panel_title(axis, figures.literal(plane.method))


def directions_rows(planes: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """A row for each part of each class: method, class, training samples, part and the two components."""
    for plane in planes:
        for name, part in plane.directions.items():
            for index, step in enumerate(part):
                yield [plane.method, index, plane.counts[index], name, *step]
