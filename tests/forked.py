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
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

TESTS = Path(__file__).resolve().parent
LIMIT = 400  # seconds after which a script is ended, and says where it was


class Script:
    """One script under way."""

    def __init__(self, parent: Parent, pid: int, log: Path) -> None:
        self.parent, self.pid, self.log = parent, pid, log

    def wait(self) -> int:
        """Its exit status; a signal's number below 0."""
        return self.parent.ask({"wait": self.pid})

    def text(self) -> str:
        """What it printed, on both streams."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Parent:
    """A process that has imported some modules, in which any warning is an error if it is strict, and forks."""

    def __init__(self, modules: Sequence[str], strict: bool) -> None:
        paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *(["-W", "error"] if strict else []), __file__, *modules]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=TESTS.parent, env=surroundings, **pipes)
        atexit.register(self.close)

    def ask(self, order: dict[str, Any]) -> int:
        """Give an order, and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, script: Path, *words: str | Path, log: Path, surroundings: Mapping[str, str]) -> Script:
        """Begin a script with these arguments, in this environment and the folder of the repository."""
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
    out = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(file, number)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [order["script"], *order["words"]]
    sys.path[:1] = [str(Path(order["script"]).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    status = 0
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
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
