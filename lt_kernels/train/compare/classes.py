"""The report's table of classes: accuracy of each class by method, and small pictures of some of its samples."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.output.figures import Results
from lt_kernels.train.output.pages import Table

MOST = 100  # classes that a page shows; of more, as many evenly by their rank, and all are in classes.csv
SAMPLES, SIDE = 3, 24  # of a class: samples that are shown, and pixels of their longer side


def data_of(config: TrainConfig) -> LongTailedData | None:
    """The data of a comparison, or None where they are no longer there: its finished runs do without."""
    from lt_kernels.train.run.build import load_data  # the trainer takes seconds

    try:
        return load_data(config)
    except (ConfigError, ImportError, OSError):
        return None


def shown_classes(counts: Sequence[int]) -> list[int]:
    """The classes of the table, by descending count."""
    order = np.argsort(-np.asarray(counts), kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(MOST, len(order))).round().astype(int))].tolist()


def class_rows(results: Results, names: Sequence[str] | None, classes: Sequence[int], grouped: str) -> Table:
    """A row a class, with the accuracy by each method, mean over seeds; the best of a row in bold."""
    counts = next(iter(results.values()))[0]["class_counts"]
    means = np.array([np.mean([run["per_class"] for run in runs], axis=0) for runs in results.values()])
    rows, best = [], set()
    for line, index in enumerate(classes):
        numbers = means[:, index]
        shown = [f"{one:.1f}" if np.isfinite(one) else "" for one in numbers]
        rows.append([str(names[index] if names else index), f"{counts[index]:,}", *shown])
        if np.isfinite(numbers).any():
            best |= {(line, place + 2) for place in np.flatnonzero(numbers == np.nanmax(numbers)).tolist()}
    return Table(["class", f"training {grouped}", *results], rows, best)


def thumbnails(data: LongTailedData, classes: Sequence[int]) -> dict[int, str]:
    """Some training samples of each of these classes side by side, as data URI by the class's place; of images only."""
    if data.input_kind != "image":
        return {}
    found = {}
    for place, index in enumerate(classes):
        rows = torch.nonzero(data.train[1] == index).flatten()[:SAMPLES]
        if len(rows):
            found[place] = _uri(data.train[0].index_select(0, rows))
    return found


def _uri(images: Tensor) -> str:
    """Images [n, channels, height, width] in one row, as a PNG of few colours."""
    from PIL import Image

    pixels = images.float()
    low, high = pixels.aminmax()
    scale = SIDE / max(pixels.shape[2:])
    if scale < 1:
        size = [max(1, round(scale * side)) for side in pixels.shape[2:]]
        pixels = torch.nn.functional.interpolate(pixels, size, mode="area")
    grey = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).round().byte()
    strip = torch.cat(list(grey), 2)
    strip = strip[:1] if len(strip) < 3 else strip[:3]
    picture = Image.fromarray(strip.permute(1, 2, 0).squeeze(2).numpy()).quantize(32)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
