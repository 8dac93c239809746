"""Pictures of what is in fashion-lt and hanzi-lt: training and test images of frequent and rare classes, as PNG.

`python -m benchmarks.tables.samples` draws docs/pictures/samples/fashion-lt.png and hanzi-lt.png. The first needs
Debian's package with Fashion-MNIST, the second fonts; docs/recipes.md names them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import results
from lt_kernels.data import LongTailedData, load
from lt_kernels.system.storage import write_whole
from lt_kernels.train.output.figures import png

COLUMNS = {"training": 10, "test": 3}  # images of a class, at most
GAP = 6  # pixels between the training and the test images
CLASSES = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures of the data sets."""
    parser = argparse.ArgumentParser("python -m benchmarks.tables.samples", description="Draw samples of data sets.")
    parser.add_argument("--data", default="fashion-lt,hanzi-lt", help="names of data sets of grey images")
    chosen = parser.parse_args(argv)
    for name in chosen.data.split(","):
        figure = samples(load(name) if name == "hanzi-lt" else load(name, imbalance=100))
        write_whole(results.ROOT / "docs" / "pictures" / "samples" / f"{name}.png", png(figure))
    return 0


def shown(counts: Tensor) -> list[int]:
    """The classes that are drawn, by descending count: all, or some evenly by the logarithm of their rank."""
    order = counts.argsort(descending=True, stable=True)
    ranks = torch.logspace(0, torch.log10(torch.tensor(float(len(order)))).item(), min(CLASSES, len(order)))
    return order[(ranks.round().long() - 1).unique() if len(order) > CLASSES else slice(None)].tolist()


def strip(data: LongTailedData, index: int) -> Tensor:
    """A class's first training images and, after a gap, its first test images, uint8 [height, width]; white is none."""
    parts = []
    for (inputs, target), places in zip((data.train, data.test), COLUMNS.values()):
        side = inputs.shape[-1]
        images = torch.full((places, side, side), 255, dtype=torch.uint8)
        rows = (target == index).nonzero().flatten()[:places]
        if len(rows):
            images[: len(rows)] = inputs[rows].squeeze(1)
        parts += [images.permute(1, 0, 2).flatten(1), torch.full((side, GAP), 255, dtype=torch.uint8)]
    return torch.cat(parts[:-1], 1)


def _label(data: LongTailedData, index: int) -> str:
    """The class's name, or its rank where the names are characters that few fonts have; and its training images."""
    rank = int((data.class_counts > data.class_counts[index]).sum()) + 1
    name = str(data.class_names[index]) if data.class_names else ""
    return f"{name if name.isascii() and name else f'rank {rank:,}'}: {data.class_counts[index]:,}"


def samples(data: LongTailedData) -> Figure:
    """A row a class: how many training images it has, some of them, and some of the test's."""
    classes = shown(data.class_counts)
    figure = Figure(figsize=(8, 0.55 * len(classes) + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    rows = [strip(data, index) for index in classes]
    axis.imshow(torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    side = len(rows[0])
    axis.set_yticks(
        [side * (place + 0.5) for place in range(len(classes))],
        [_label(data, index) for index in classes],
    )
    middle = [side * COLUMNS["training"] / 2, side * (COLUMNS["training"] + COLUMNS["test"] / 2) + GAP]
    axis.set_xticks(middle, ["training images", "test images"])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
