"""Runs in processes of their own: none outlives the process that asked for them, however that ends."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from lt_kernels.system.files import FileError
from lt_kernels.system.interrupts import Interrupted
from lt_kernels.system.storage import FolderInUse
from lt_kernels.train.errors import ConfigError, RunFailed

# not fork: a forked process inherits torch's thread pool in whatever state it is
CONTEXT = multiprocessing.get_context("spawn")
PATIENCE = 10.0  # seconds that a process has to close its files

Work = Callable[[Any], Any]


class Worker:
    """A process that does one job after another; `job` is the one it is at."""

    def __init__(self, work: Work, device: str | None = None) -> None:
        """device: the GPU that the process has for itself, as CUDA_VISIBLE_DEVICES names it; None leaves all."""
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(theirs, work, device))
        resource_tracker.ensure_running()  # its start would let SIGINT through again, to the first process
        with _blocked():  # what a process starts with it keeps: Ctrl-C reaches all of them, and the parent decides
            self.process.start()
        theirs.close()
        self.job: Any = None

    def give(self, job: Any) -> None:
        """Have it do a job; None is the end."""
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it died: `result` says so
            self.connection.send(job)

    def result(self) -> Any:
        """The result of its job.

        Errors: ConfigError and FolderInUse of the job's; RunFailed for a process that died, or whose disk is full;
        RuntimeError with the traceback of any other error.
        """
        try:
            error, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(PATIENCE)
            raise RunFailed(f"the process of {self.job} {_end_of(self.process.exitcode)}") from None
        if error is not None:
            raise {"ConfigError": ConfigError, "FolderInUse": FolderInUse}.get(error, RunFailed)(value)
        return value


def _end_of(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with status {status}"
    memory = " (out of memory? --jobs 1 takes less)" if -status == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{memory}"


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = torch.cuda.device_count()
    return [str(place) for place in range(number)] if named is None else named.split(",")[:number]


def run_all(jobs: Sequence[Any], number: int, work: Work) -> Iterator[tuple[Any, Any]]:
    """Do the jobs, `number` at a time, and yield each with its result when it is there.

    Where there are GPUs, each process has one of them, in turn. Where one fails, or this process is interrupted, the
    others are ended; so they are if this process is killed.
    Errors: those of `Worker.result`.
    """
    waiting, workers, devices = list(reversed(jobs)), [], gpus()
    try:
        for place in range(min(number, len(waiting))):
            workers.append(Worker(work, devices[place % len(devices)] if devices else None))
            workers[-1].give(waiting.pop())
        busy = {worker.connection: worker for worker in workers}
        while busy:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                yield worker.job, worker.result()
                worker.give(waiting.pop() if waiting else None)
                if worker.job is None:
                    del busy[worker.connection]
    finally:
        _end(workers)


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:  # also those that are done: Python takes seconds to end after torch, and nothing is open
        worker.process.terminate()
    for worker in workers:
        worker.process.join(PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, work: Work, device: str | None) -> None:
    """What a process does: jobs until there are none, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whatever a library does to the signals that are blocked
    if device is not None:  # before CUDA is first asked for anything
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with contextlib.suppress(EOFError):
            while (job := connection.recv()) is not None:
                connection.send(_outcome(work, job))
    finally:
        gc.freeze()  # as the command does


def _outcome(work: Work, job: Any) -> tuple[str | None, Any]:
    try:
        return None, work(job)
    except (ConfigError, FolderInUse, RunFailed) as error:
        return type(error).__name__, f"{job}: {error}"
    except FileError as error:
        return "ConfigError", f"{job}: {error}"
    except OSError as error:
        return "OSError", f"{job}: {error.filename or 'a file'}: {error.strerror or error}"
    except Interrupted as stop:
        raise SystemExit(stop.status) from None
    except Exception:
        return "Exception", f"{job} failed:\n{traceback.format_exc()}"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
