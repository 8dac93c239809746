"""Commands and scripts in processes forked from one which has imported what they need: a fraction of a second each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = re.compile(r"^(?:from|import) (?:lt_kernels\.integrations\.)?(\w+)", re.MULTILINE)
# The package without what its top imports, torch above all, which takes seconds and has no part in these programs.
LIGHT = f"""
import sys, types
sys.modules["lt_kernels"] = types.ModuleType("lt_kernels")
sys.modules["lt_kernels"].__path__ = [{str(ROOT / "lt_kernels")!r}]
"""
PARENT = """
import gc, importlib, json, os, pkgutil, runpy, signal, sys, traceback, warnings
import lightning, matplotlib.backends.backend_agg, sklearn.datasets, torch, yaml
from torch.utils.tensorboard import SummaryWriter
import lt_kernels.data, lt_kernels.train
from lt_kernels import cli
for package in (lt_kernels.data, lt_kernels.train):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from tests.injection import moments

torch.set_num_threads(1)
warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # an allocator is
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # whatever the surroundings ignore
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

def command(order):
    exec(order["before"], globals())
    return cli.main(order["words"])

def script(order):
    sys.argv = order["words"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")

def child(order):
    os.setsid()
    os.chdir(order["folder"])
    os.environ["PWD"] = order["folder"]
    out = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(file, number)
    sys.path[0] = os.path.dirname(sys.executable)  # where lt-kernels lies
    try:
        status = globals()[order["kind"]](order)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    os._exit(status or 0)

gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
    elif "modules" in order:
        answer = len([importlib.import_module(name) for name in order["modules"]])
        gc.freeze()
    else:
        answer = os.fork()
        if answer == 0:
            child(order)
    print(answer, flush=True)
"""
# What a comparison's `before` is where its processes may be forked too: a new one imports everything for seconds.
FORKS = """
import multiprocessing
from lt_kernels.train.compare import workers
workers.CONTEXT = multiprocessing.get_context("fork")
"""


class Child:
    """One command under way."""

    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        self.nursery, self.pid, self.log = nursery, pid, log

    def wait(self) -> int:
        """Its exit status; a signal's number below 0."""
        return self.nursery.ask({"wait": self.pid})

    def text(self) -> str:
        """What it printed, on both streams."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Nursery:
    """Start commands of `lt-kernels` and scripts of Python."""

    def __init__(self, folder: Path) -> None:
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        surroundings["PYTHONUTF8"] = "0"  # so that a child's locale counts
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, env=surroundings, **pipes)
        self.folder, self.number = folder, 0

    def ask(self, order: dict[str, Any]) -> int:
        """Give an order, and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def know(self, *modules: str) -> None:
        """Import more, once for all that are forked later."""
        self.ask({"modules": modules})

    def begin(self, kind: str, words: tuple[str | Path, ...], folder: Path, before: str = "") -> Child:
        """Begin a command or a script in a folder."""
        self.number += 1
        log = self.folder / f"{self.number}.txt"
        told = {"kind": kind, "words": [str(word) for word in words], "before": before, "folder": str(folder)}
        return Child(self, self.ask({**told, "log": str(log)}), log)

    def start(self, *words: str | Path, before: str = "", folder: Path = ROOT) -> Child:
        """Begin a command; `before` is Python that runs in the child first."""
        return self.begin("command", words, folder, before)

    def run(self, *words: str | Path, before: str = "", folder: Path = ROOT) -> tuple[int, str]:
        """Do a command, and return its exit status and what it printed."""
        child = self.start(*words, before=before, folder=folder)
        return child.wait(), child.text()

    def script(self, *words: str | Path, folder: Path) -> tuple[int, str]:
        """Do a script, named by its first word, and return its exit status and what it printed."""
        child = self.begin("script", words, folder)
        return child.wait(), child.text()

    def close(self) -> None:
        """End the parent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something; an error if it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def missing(code: str) -> list[str]:
    """What some code imports and Python 3.10 lacks: the libraries of the extra `integrations` are for later ones."""
    names = sorted(set(IMPORTED.findall(code))) if sys.version_info < (3, 11) else []
    return [name for name in names if importlib.util.find_spec(name) is None]
