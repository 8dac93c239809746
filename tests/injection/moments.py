"""Moments of a run, counted: every file that is made, written, flushed, renamed or removed, and every step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

CALLS = ("open", "write", "fsync", "replace", "unlink")


def die() -> None:
    """End as a power failure does: nothing is closed, nothing is told."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_each(happens: Callable[[str], None]) -> None:
    """Call `happens` with a moment's name before it; of a write half is written before, and the rest is no moment."""
    from lt_kernels.train.run.training import EpochSettings

    rest = [0]

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **options)
            if name == "write" and len(arguments[1]) == rest[0]:
                rest[0] = 0
                return call(*arguments)
            if name == "write":
                written = call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                rest[0] = len(arguments[1]) - written
                happens(name)
                return written
            happens(name)
            return call(*arguments, **options)

        return instead

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    before = EpochSettings.on_train_batch_start

    def step(self: Any, trainer: Any, *rest: Any) -> None:
        happens("step")
        before(self, trainer, *rest)

    EpochSettings.on_train_batch_start = step


def do_at(number: int, action: Callable[[], None]) -> None:
    """Do something at the moment of this number, from 0."""
    passed = [0]

    def happens(name: str) -> None:
        passed[0] += 1
        if passed[0] == number + 1:
            action()

    at_each(happens)


def die_at(number: int) -> None:
    """Die at the moment of this number, from 0."""
    do_at(number, die)


def at_step(number: int, action: Callable[[], None]) -> None:
    """Do something before the step of this number, from 0."""
    steps = [0]

    def happens(name: str) -> None:
        steps[0] += name == "step"
        if name == "step" and steps[0] == number + 1:
            action()

    at_each(happens)


def record(path: str) -> None:
    """Keep the names of all moments in a file, as they come."""
    names: list[str] = []
    write, opened = os.write, os.open(path, os.O_CREAT | os.O_WRONLY)

    def happens(name: str) -> None:
        names.append(name)
        os.lseek(opened, 0, os.SEEK_SET)
        write(opened, json.dumps(names).encode())

    at_each(happens)
