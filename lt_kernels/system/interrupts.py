"""Signals that end a command, as an exception that unwinds it: what is open is closed, and files stay whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; what kill and job schedulers send; the terminal was closed
TWICE = 1.0  # seconds
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal came. No Exception and no KeyboardInterrupt: nobody on the way takes it for an error or for his own.

    `number` is the signal's, `hint` what to do next. The exit status of a command is 128 + `number`, as of shells.
    """

    def __init__(self, number: int) -> None:
        self.number, self.hint = number, ""
        super().__init__(f"interrupted by {signal.Signals(number).name}")

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        """The processes of a run tell one another of it."""
        return Interrupted, (self.number,)

    @property
    def status(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, the first of SIGNALS raises `Interrupted`, but for those that are ignored or that somebody handles.

    More that come within a second of it are the same wish, said twice; one that comes later ends the process at once,
    which files outlive as they do a kill. Does nothing outside of the main thread, where no signal arrives.
    """
    before, came = {}, []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        if len(came) == 1:
            raise Interrupted(number)
        if came[-1] - came[0] > TWICE:
            os._exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
