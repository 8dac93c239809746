"""The analyses of finished runs on disk: pictures, the numbers behind them, one HTML page, TensorBoard images."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib import image
from torch.utils.tensorboard import SummaryWriter

from lt_kernels.system.storage import fresh_folder, write_whole
from lt_kernels.train.analysis import tables
from lt_kernels.train.analysis.entries import ENTRIES, Analyses
from lt_kernels.train.analysis.measures import analyze_run
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.files import COMPARISON, CONFIG, RESULT, TENSORBOARD, Which
from lt_kernels.train.files.folder import claimed, recorded
from lt_kernels.train.methods.build import total_epochs
from lt_kernels.train.output import figures
from lt_kernels.train.output.cells import rounded
from lt_kernels.train.output.pages import Picture, Table, extremes, page, picture
from lt_kernels.train.recipes import read_config

PAGE = "analysis.html"


def write_analysis(analyses: Analyses, out: Path, title: str, step: int) -> Path:
    """Write PNG, CSV, the page and TensorBoard's images of runs on the same classes into a folder that is there; return
    the page's path.
    """
    fresh_folder(out / TENSORBOARD)
    recorded = any(analysis.history is not None for analysis in analyses)
    write_whole(out / "summary.csv", tables.summary(analyses))
    pictures: dict[str, bytes] = {}
    shown: list[Picture] = []
    for entry in ENTRIES:
        if (entry.epochs and not recorded) or not any(map(entry.shows, analyses)):
            continue
        figure, numbers = entry.draw(analyses), f"{entry.stem}.csv"
        pictures[entry.stem] = figures.png(figure)
        write_whole(out / f"{entry.stem}.png", pictures[entry.stem])
        write_whole(out / numbers, entry.table(analyses))
        finding = extremes(entry.what, {one.name: entry.number(one) for one in analyses})
        caption = f"{finding} {entry.caption}"
        shown.append(picture(figure, entry.stem.replace("_", "-"), entry.title, caption, finding, numbers))
    values = {"title": title, "finding": _finding(analyses), "remarks": _remarks(analyses)}
    text = page("analysis.html", summary=_summary(analyses), pictures=shown, **values)
    write_whole(out / PAGE, text)
    # Last of all: its thread writes later than it is asked to, so that a full disk would be noticed there by chance.
    with SummaryWriter(str(out / TENSORBOARD)) as writer:
        for stem, drawn in pictures.items():
            writer.add_image(stem, image.imread(io.BytesIO(drawn))[:, :, :3], step, dataformats="HWC")
    return out / PAGE


def _finding(analyses: Analyses) -> str:
    means = {analysis.name: analysis.summary.get("accuracy_all", float("nan")) for analysis in analyses}
    return extremes("mean class accuracy", means, " %", ".1f")


COLUMNS = {
    "accuracy_many": "many [%]",
    "accuracy_medium": "medium [%]",
    "accuracy_few": "few [%]",
    "accuracy_all": "all [%]",
    "errors": "errors",
    "calibration_error": "ECE",
    "balance_dot": "B_D²",
    "balance_angle": "B_A²",
    "balance_norm": "B_L²",
    "separability_all": "separability",
}


def _summary(analyses: Analyses) -> Table:
    names = [
        name for name in COLUMNS if any(a.summary.get(name, float("nan")) == a.summary.get(name) for a in analyses)
    ]
    lines = [[a.name, *(rounded(a.summary[name]) for name in names)] for a in analyses]
    return Table(["run", *(COLUMNS[name] for name in names)], lines)


def _remarks(analyses: Analyses) -> str:
    """What holds for the whole page, and which runs have no gradient components and why."""
    counts = analyses[0].counts
    text = (
        f"{len(counts):,} classes with {counts.max():,} to {counts.min():,} training {analyses[0].counted}. many: more "
        "than 100; medium: 20 to 100; few: below 20. Weights and features of a head of cosines count with length 1, "
        "and its logits are cosines times the loss's scale."
    )
    without = [f"{a.name}: {a.components}" for a in analyses if isinstance(a.components, str)]
    if without:
        text += f" Gradient components are not applicable to some runs ({'; '.join(without)})."
    return text


def find_runs(folders: Sequence[str]) -> list[Path]:
    """The folders of the runs; that of a comparison stands for its runs of seed 0.

    Errors: ConfigError naming a folder that holds no finished run.
    """
    runs: list[Path] = []
    for name in folders:
        folder = Path(name)
        names = recorded(folder)[1] if (folder / COMPARISON).exists() else []
        inside = [folder / method / "seed-0" for method in names]
        runs += inside or [folder]
    for folder in runs:
        if not (folder / CONFIG).exists():
            raise ConfigError(f"RUN must be the folder of a run, with {CONFIG} in it, got {str(folder)!r}")
        if not (folder / RESULT).exists():
            why = "finish it first with lt-kernels train --resume"
            raise ConfigError(f"RUN must be the folder of a finished run, got {str(folder)!r} without {RESULT}: {why}")
    if len(set(runs)) != len(runs):
        raise ConfigError(f"RUN must be given once each, got {', '.join(str(folder) for folder in runs)}")
    return runs


def name_runs(folders: Sequence[Path]) -> list[str]:
    """A short name for each run: its method, or the folder above that of its seed, with its seed, or its folder."""
    configs = [read_config(folder / CONFIG) for folder in folders]
    for names in (
        [each.method for each in configs],
        [folder.resolve().parent.name for folder in folders],
        [f"{each.method}, seed {each.seed}" for each in configs],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def analyze_folders(folders: Sequence[str], out: str | None, checkpoint: Which | None = None) -> Path:
    """Analyse finished runs on one data set together; return the page's path.

    Without `out`, the files are in `analysis` in the run's folder, or in the folder that all runs have in common.
    checkpoint: as for `load_run`. Errors: ConfigError naming the folder that cannot be analysed.
    """
    runs = find_runs(folders)
    names = name_runs(runs)
    common = Path(os.path.commonpath([folder.resolve() for folder in runs]))
    target = Path(out) if out else (runs[0] if len(runs) == 1 else common) / "analysis"
    with claimed(target):
        return _analyze(runs, names, target, checkpoint)


def _analyze(runs: Sequence[Path], names: Sequence[str], target: Path, checkpoint: Which | None) -> Path:
    analyses = [analyze_run(name, folder, checkpoint) for name, folder in zip(names, runs, strict=True)]
    for analysis, folder in zip(analyses, runs, strict=True):
        if analysis.counts.tolist() != analyses[0].counts.tolist():
            raise ConfigError(
                f"RUN must have the classes of {str(runs[0])!r}, with as many samples, got {str(folder)!r}"
            )
    config = read_config(runs[0] / CONFIG)
    epochs = total_epochs(config.method, config.epochs, config.method_options)
    return write_analysis(analyses, target, f"{config.data}: {', '.join(names)}", epochs)
