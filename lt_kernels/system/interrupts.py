"""Signals that end a command, as an exception that unwinds it: what is open is closed, and files stay whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; what kill and job schedulers send; the terminal was closed
TWICE = 1.0  # seconds
LOST = 0.2  # seconds between two looks at whether an exception still is on its way
SOON = 0.01  # seconds until one that came at a wrong moment is raised
# An exception between two steps of these modules leaves a lock held or a thread asleep for ever; not where they wait.
LOCKING = ("threading", "queue")
WAITING = ("wait", "wait_for", "join", "_wait_for_tstate_lock")
HOLDING = ("lt_kernels.system.storage", "held")  # here one would leave the file that says that a folder is in use
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


def _amid_locks(frame: FrameType | None) -> bool:
    """Whether a stack is within HOLDING, or a function of LOCKING that is not waiting for another thread."""
    while frame is not None:
        module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
        if module in LOCKING:
            return function not in WAITING
        if (module, function) == HOLDING:
            return True
        frame = frame.f_back
    return False


class _Raiser:
    """What handles the signals within `raised`, and raises again what was lost on the way or came amid locks."""

    def __init__(self) -> None:
        self.came: list[float] = []
        self.held = False
        self.error: Callable[[], Interrupted | None] = lambda: None
        self.asked, self.over = threading.Event(), threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise for the first signal; end the process where one comes much later."""
        self.came.append(time.monotonic())
        if len(self.came) == 1:
            self.number = number
            self.asked.set()
            self.held = _amid_locks(frame)
            if self.held:
                return  # `watch` sends it again
            error = Interrupted(number)
            self.error = weakref.ref(error)
            try:
                raise error
            finally:
                del error  # else its traceback and it hold each other
        if self.came[-1] - self.came[0] > TWICE:
            os._exit(128 + number)

    def watch(self) -> None:
        """From the first signal on, send it again where nothing unwinds with its exception."""
        self.asked.wait()
        while not self.over.wait(SOON if self.held else LOST):
            if self.error() is None:
                self.came.clear()
                signal.pthread_kill(threading.main_thread().ident or 0, self.number)


_Handler = Callable[[int, FrameType | None], Any]
# What there is before `raised` and what it puts in its place, while it lasts.
_handlers: dict[int, tuple[_Handler | int | None, _Handler]] = {}


def take_back() -> None:
    """Put the handlers of `raised` in the place of those that a library has put around them since.

    Lightning's takes a note of SIGTERM, and where the exception comes a moment later ends the training by itself, with
    status 0 and without a word; in several processes it waits for the others first.
    """
    if threading.current_thread() is threading.main_thread():
        for number, (_, handler) in _handlers.items():
            signal.signal(number, handler)


def _let_go() -> None:
    """In a forked child, which is another process's command: no thread of its own would raise again what is lost."""
    for number, (before, _) in _handlers.items():
        signal.signal(number, before)
    _handlers.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, the first of SIGNALS raises `Interrupted`, but for those that are ignored or that somebody handles.

    More that come within a second of it are the same wish, said twice; one that comes later ends the process at once,
    which files outlive as they do a kill. An exception may be lost where Python or a library ignores any, as in a
    destructor: then it is raised again. One that would come in the midst of a lock or a queue, which could then block
    for ever, or while a folder is taken or let go, is raised a moment later. Does nothing outside of the main thread,
    where no signal arrives. A process that is forked within has the handlers from before.
    """
    before, raiser = {}, _Raiser()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, raiser.handle)
                _handlers[number] = before[number], raiser.handle
    if before:
        threading.Thread(target=raiser.watch, name="lt_kernels.interrupts", daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            _handlers.pop(number, None)
        raiser.over.set()
        raiser.asked.set()
    if raiser.held:
        raise Interrupted(raiser.number)
