"""Signals amid what a command does: none is lost, and none leaves a lock, a folder or a thread behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.nursery import LIGHT, ROOT

LOSES = """
import os, signal, sys, time
from lt_kernels.system import interrupts

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)

class Loses:
    def __del__(self):
        stop()

def passes():
    try:
        stop()
    except BaseException:
        pass

try:
    with interrupts.raised():
        Loses() if sys.argv[1] == "destructor" else passes()
        time.sleep(30)
except interrupts.Interrupted as error:
    sys.exit(error.status)
"""


@pytest.mark.parametrize("where", ["destructor", "handler"])
def test_a_signal_whose_exception_is_ignored_is_raised_again(where: str) -> None:
    found = subprocess.run([sys.executable, "-c", LIGHT + LOSES, where], capture_output=True, cwd=ROOT, timeout=60)
    assert found.returncode == 128 + signal.SIGTERM, found.stderr


# A child for each line of some files at which a signal can come while `DO` is done.
ATTEMPTS = """
import os, queue, signal, sys, tempfile, threading, time
from pathlib import Path
from lt_kernels.system import interrupts, storage

{DO}

def attempt(step, folder):
    came = []

    def trace(frame, event, _):
        if frame.f_globals["__name__"] in MODULES:
            came.append(event)
            if len(came) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return trace

    prepare()
    try:
        with interrupts.raised():
            sys.settrace(trace)
            do(folder)
            sys.settrace(None)
            if len(came) < step:
                return "over"
            time.sleep(30)
    except interrupts.Interrupted:
        sys.settrace(None)
        return left(folder)

pipes = []
with tempfile.TemporaryDirectory() as top:
    for step in range(1, 101):
        pipes.append(os.pipe())
        if os.fork() == 0:
            try:
                os.write(pipes[-1][1], repr(attempt(step, Path(top) / str(step))).encode())
            finally:
                os._exit(0)
        os.close(pipes[-1][1])
    all_told = [eval(os.read(there, 1000) or "None") for there, _ in pipes]
steps = all_told.index("over")
assert all_told[:steps] == [RIGHT] * steps, all_told
print(steps)
"""
GIVES = """
MODULES, RIGHT = ("threading", "queue"), ["first", "last"]
given, taken = queue.Queue(), queue.Queue()

def serve():
    while True:
        taken.put(given.get(True, 60))

def prepare():
    threading.Thread(target=serve, daemon=True).start()
    time.sleep(0.05)

def do(folder):
    given.put("first")

def left(folder):
    time.sleep(0.05)
    given.put("last")
    return [taken.get(True, 5) for _ in range(2)]
"""
TAKES = """
MODULES, RIGHT = (storage.__name__,), False

def prepare():
    pass

def do(folder):
    with storage.held(folder):
        pass

def left(folder):
    return folder.exists()
"""


@pytest.mark.parametrize("do", [GIVES, TAKES], ids=["queue", "folder"])
def test_a_signal_leaves_no_lock_held_no_thread_asleep_and_no_folder_taken(do: str) -> None:
    """Wherever it comes within a queue's `put`, or while a folder is taken and let go: twenty lines and more."""
    found = subprocess.run(
        [sys.executable, "-c", LIGHT + ATTEMPTS.replace("{DO}", do)], capture_output=True, cwd=ROOT, timeout=120
    )
    assert int(found.stdout or 0) > 10, found.stderr


FORKED = """
import os, signal, time
from lt_kernels.system import interrupts
with interrupts.raised():
    child = os.fork()
    if child == 0:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with interrupts.raised():  # its own, with a thread that raises again what is lost
            interrupts.take_back()
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""


def test_a_forked_process_has_the_handlers_from_before() -> None:
    """Those within would wait there for a thread that only the first process has."""
    found = subprocess.run([sys.executable, "-c", LIGHT + FORKED], capture_output=True, cwd=ROOT, timeout=60)
    assert found.returncode == 0, found.stderr
