"""Commands in processes that are forked from one which has imported what they need: a fraction of a second each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import json, os, signal, sys
import lightning, torch, yaml
from torch.utils.tensorboard import SummaryWriter
from lt_kernels import cli
from lt_kernels.train import commands
from lt_kernels.train.run import components, loading, training
from tests.injection import moments

torch.set_num_threads(1)
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # whatever the surroundings ignore
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

def child(order):
    os.setsid()
    out = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(file, number)
    try:
        exec(order["before"], globals())
        status = cli.main(order["words"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 99
    os._exit(status)

for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
    else:
        answer = os.fork()
        if answer == 0:
            child(order)
    print(answer, flush=True)
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
    """Start commands of `lt-kernels`; `before` is Python that runs in the child first."""

    def __init__(self, folder: Path) -> None:
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, env=surroundings, **pipes)
        self.folder, self.number = folder, 0

    def ask(self, order: dict[str, Any]) -> int:
        """Give an order, and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, *words: str | Path, before: str = "") -> Child:
        """Begin a command."""
        self.number += 1
        log = self.folder / f"{self.number}.txt"
        pid = self.ask({"words": [str(word) for word in words], "before": before, "log": str(log)})
        return Child(self, pid, log)

    def run(self, *words: str | Path, before: str = "") -> tuple[int, str]:
        """Do a command, and return its exit status and what it printed."""
        child = self.start(*words, before=before)
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
