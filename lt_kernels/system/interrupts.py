"""Signals that end a command, as an exception that unwinds it: what is open is closed, and files stay whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; what kill and job schedulers send; the terminal was closed
TWICE = 1.0  # seconds
LOST = 0.2  # seconds between two looks at whether an exception still is on its way
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


class _Raiser:
    """What handles the signals within `raised`, and raises again what was lost on the way."""

    def __init__(self) -> None:
        self.came: list[float] = []
        self.asked, self.over = threading.Event(), threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise for the first signal; end the process where one comes much later."""
        self.came.append(time.monotonic())
        if len(self.came) == 1:
            error = Interrupted(number)
            self.number, self.error = number, weakref.ref(error)
            self.asked.set()
            try:
                raise error
            finally:
                del error  # else its traceback and it hold each other
        if self.came[-1] - self.came[0] > TWICE:
            os._exit(128 + number)

    def watch(self) -> None:
        """From the first signal on, send it again where nothing unwinds with its exception any more."""
        self.asked.wait()
        while not self.over.wait(LOST):
            if self.error() is None:
                self.came.clear()
                signal.pthread_kill(threading.main_thread().ident or 0, self.number)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, the first of SIGNALS raises `Interrupted`, but for those that are ignored or that somebody handles.

    More that come within a second of it are the same wish, said twice; one that comes later ends the process at once,
    which files outlive as they do a kill. An exception may be lost where Python or a library ignores any, as in a
    destructor: then it is raised again. Does nothing outside of the main thread, where no signal arrives.
    """
    before, raiser = {}, _Raiser()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, raiser.handle)
    if before:
        threading.Thread(target=raiser.watch, name="lt_kernels.interrupts", daemon=True).start()
    try:
        yield
    finally:
        raiser.over.set()
        raiser.asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)
