"""Scripts in processes that are forked from one which has imported what they need: a fraction of a second each.

A process that has only imported has no threads, and no state that a script could tell from that of a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

TESTS = Path(__file__).resolve().parent
# What a run of the trainer imports, but scikit-learn, which starts a thread.
TRAINER = (
    *("pytest", "jsonargparse", "torch.distributed.fsdp", "lt_kernels.train.run.loading"),
    *("lt_kernels.train.commands", "lt_kernels.train.run.training"),
)
LIMIT = 400  # seconds after which a script is ended, and says where it was


class Script:
    """One script under way."""

    def __init__(self, parent: Parent, pid: int, log: Path) -> None:
        self.parent, self.pid, self.log = parent, pid, log
        self.status: int | None = None

    def wait(self) -> int:
        """Its exit status; a signal's number below 0."""
        if self.status is None:
            self.status = self.parent.ask({"wait": self.pid})
        return self.status

    def lives(self) -> bool:
        """Whether it has not ended yet, on a system with /proc."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def kill(self) -> None:
        """End it, if it has not."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def printed(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def said(self) -> str:
        """What it printed as errors."""
        return _errors(self.log).read_text(encoding="utf-8", errors="replace")


def _errors(log: Path) -> Path:
    return log.with_name(f"{log.name}-errors")


class Parent:
    """A process that has imported some modules, in which any warning is an error if it is strict, and forks."""

    def __init__(self, modules: Sequence[str], strict: bool) -> None:
        paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        strictly = ["-W", "error", "-W", "ignore:Guards may run slower on Python:RuntimeWarning"]  # torch's, on 3.13.0
        command = [sys.executable, *(strictly if strict else []), __file__, *modules]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=TESTS.parent, env=surroundings, **pipes)
        atexit.register(self.close)

    def ask(self, order: dict[str, Any]) -> int:
        """Give an order, and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, script: Path | str, *words: str | Path, log: Path, surroundings: Mapping[str, str]) -> Script:
        """Begin a script, or a module by its name, with these arguments, in this environment and the repository."""
        told = {"script": str(script), "words": [str(word) for word in words], "environment": dict(surroundings)}
        return Script(self, self.ask({**told, "log": str(log)}), log)

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(timeout=60)


@functools.cache
def parent_of(*modules: str, strict: bool = False) -> Parent:
    """The one of these modules, which lives as long as the tests do."""
    return Parent(modules, strict)


def _run(order: dict[str, Any]) -> NoReturn:
    """Be the script, in the process that was forked for it."""
    log, writing = Path(order["log"]), os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    for number, path, how in ((0, os.devnull, os.O_RDONLY), (1, log, writing), (2, _errors(log), writing)):
        os.dup2(os.open(path, how), number)
    faulthandler.register(signal.SIGALRM, chain=True)  # which needs no thread, as its own limit of time would
    signal.alarm(LIMIT)
    os.environ.clear()
    os.environ.update(order["environment"])
    script = order["script"]
    sys.argv = [script, *order["words"]]
    folder = str(Path(script).parent) if script.endswith(".py") else os.getcwd()
    sys.path[:1] = [folder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    status = 0
    try:
        (runpy.run_path if script.endswith(".py") else runpy.run_module)(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve(modules: Sequence[str]) -> None:
    """Import what can be imported, then fork and wait as told."""
    for name in modules:
        with contextlib.suppress(ImportError):  # a script that needs it says so
            importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _run(order)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
