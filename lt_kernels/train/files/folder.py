"""Which folder is whose: runs and comparisons are prepared, claimed and recognised here. Imports no trainer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lt_kernels.system import storage
from lt_kernels.system.interrupts import Interrupted
from lt_kernels.train.config import FIELDS, TrainConfig, make_config
from lt_kernels.train.errors import ConfigError, RunFailed
from lt_kernels.train.files import BEST, COMPARISON, CONFIG, FAILED, KEPT, LAST, OWN, RESULT
from lt_kernels.train.files.results import checked_result
from lt_kernels.train.plainyaml import written
from lt_kernels.train.recipes import read_config, read_settings


def config_text(config: TrainConfig) -> str:
    """The config as `write_config` writes it."""
    return written(config.as_dict())


def write_config(config: TrainConfig, path: str | Path) -> None:
    """The config as YAML that `read_config` reads back to an equal value."""
    storage.write_whole(path, config_text(config))


def prepare_run(config: TrainConfig, folder: Path, resume: bool) -> None:
    """Check that a folder is free for a run, or holds a part of the same run; nothing is written.

    A run that kept nothing, because it failed or was ended before its first checkpoint, leaves its folder free. One
    that failed later leaves it free for other settings: with its own it would fail again at the same step.
    Errors: ConfigError naming --out (a run is there, and it is not to be resumed, or files that are no run's) or the
    setting that differs from that run's.
    """
    stored = folder / CONFIG
    kept = [name for name in KEPT if (folder / name).exists()]
    if not stored.exists():
        own = [name for name in OWN if (folder / name).exists()]
        if own:
            raise ConfigError(
                f"--out must be a run's folder or a new one, got {str(folder)!r} with {own[0]} and without {CONFIG}"
            )
        return
    before = read_config(stored)
    if not kept:
        if not _is_of_a_run(stored, before):
            raise ConfigError(f"--out {str(folder)!r} holds a {CONFIG} that is no run's: choose another folder")
        return
    if is_given_up(config, folder):
        return
    if not resume:
        raise ConfigError(
            f"--out {str(folder)!r} holds a run already: continue it with --resume, or choose another folder"
        )
    same_settings(config, before, stored)


def _is_of_a_run(stored: Path, config: TrainConfig) -> bool:
    """Whether a file is what a run wrote for this config, of this version or of one that had not yet all keys."""
    text = storage.read_regular(stored, 2**20).decode("utf-8", "replace")
    values = config.as_dict()
    known = {key: values[key] for key in FIELDS if re.search(f"^{key}:", text, re.MULTILINE)}
    return len(known) > len(FIELDS) / 2 and text == written(known)


def _failed(folder: Path) -> bool:
    return (folder / FAILED).exists() and not (folder / RESULT).exists()


def is_given_up(config: TrainConfig, folder: Path) -> bool:
    """Whether a folder holds a failed run of other settings, what it kept is of no use to a run of these."""
    return _failed(folder) and read_config(folder / CONFIG).settings() != config.settings()


def begin_run(config: TrainConfig, folder: Path) -> None:
    """Write the config of a run that `prepare_run` let pass; what a failed run of other settings kept is removed."""
    if is_given_up(config, folder):
        from lt_kernels.train.files.shards import remove_shards  # which imports torch

        (folder / LAST).unlink(missing_ok=True)
        remove_shards(folder)
    if not (folder / LAST).exists():
        (folder / BEST).unlink(missing_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    write_config(config, folder / CONFIG)


@contextlib.contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Have a run that ends by an error of its own, and not from outside, leave the reason in its folder."""
    try:
        yield
    except (Interrupted, OSError, RunFailed):
        raise
    except Exception as error:
        with contextlib.suppress(OSError):
            storage.write_whole(folder / FAILED, f"{type(error).__name__}: {error}\n")
        raise


def same_settings(config: TrainConfig, before: TrainConfig, stored: Path, what: str = "--resume") -> None:
    """Refuse to go on with settings other than those of the run that `stored` is of; `what` begins the error."""
    known = before.settings()
    for key, value in config.settings().items():
        if known[key] != value:
            raise ConfigError(f"{what}: {key} must be {known[key]!r}, as in {str(stored)!r}, got {value!r}")


def read_result(folder: Path, config: TrainConfig | None = None) -> dict[str, Any] | None:
    """The result of a run, or None where it is not finished.

    Errors: ConfigError naming the file, where it is no result, or with `config`, that of a run of other settings.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    result = checked_result(path)
    own = make_config(result["config"])
    if config is not None:
        same_settings(config, own, path, "result of another run")
    return result


def prepare_comparison(folder: Path, resume: bool) -> None:
    """Check that a folder is free for a comparison, or may be gone on with; nothing is written.

    A comparison of which no run has kept anything leaves its folder free. Errors: ConfigError naming --out.
    """
    if resume or not folder.is_dir():
        return
    inside = [path for path in folder.iterdir() if path.name != storage.LOCK]
    kept = [path for name in KEPT for path in folder.glob(f"*/*/{name}")]
    if inside and (kept or not (folder / COMPARISON).exists()):
        raise ConfigError(f"--out {str(folder)!r} is not empty: finish it with --resume, or choose another folder")


def recorded(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of the comparison in a folder, and the names of its methods.

    Errors: ConfigError naming the file.
    """
    mark = folder / COMPARISON
    settings = read_settings(mark)
    names = settings.pop("methods_compared", None)
    settings.pop("seeds", None)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise ConfigError(f"config {str(mark)!r} must name methods in methods_compared, got {names!r}")
    return settings, names


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder that --out names, made if it is not there.

    Errors: ConfigError where it cannot be written, or its name is no text; FolderInUse.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):  # TensorBoard, for one, takes no others
        raise ConfigError(f"--out must be a path in UTF-8, got {str(folder)!r}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(storage.held(folder))
        except OSError as error:
            raise ConfigError(f"--out {str(folder)!r} cannot be written: {error.strerror}") from error
        yield


@contextlib.contextmanager
def hinting(*hints: str) -> Iterator[None]:
    """Have what ends a command from outside say how to go on, after what it says already."""
    try:
        yield
    except (Interrupted, RunFailed, OSError) as error:
        words = filter(None, [getattr(error, "hint", ""), *hints])
        setattr(error, "hint", "; ".join(words))  # noqa: B010 (errors of the system have none)
        raise
