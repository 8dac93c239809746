"""The command line `lt-kernels`: its commands' exit statuses, and what they say where they fail.

Only the command that runs imports what it needs: help and doctor work without the trainer.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lt_kernels.arguments import parsed
from lt_kernels.system import interrupts, terminal
from lt_kernels.system.storage import FolderInUse

ROOT = Path(__file__).resolve().parents[1]
# what a command that was interrupted has done, where it does not say so itself
BEGUN: dict[str, str] = dict.fromkeys(["train", "compare", "analyze", "planar", "shift"], "nothing was begun")
BEGUN["bench"] = "cases that were measured are kept"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed (a full disk, a process that died), 2 wrong
    arguments or files, 128 + the signal's number interrupted (130 for Ctrl-C, 143 for SIGTERM), 141 closed pipe.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with interrupts.raised(), terminal.streams():
            return _guarded(words)
    except interrupts.Interrupted as stop:  # after its work
        return stop.status
    except OSError as error:  # of stdout or stderr themselves
        terminal.silence()
        if isinstance(error, BrokenPipeError):
            return terminal.CLOSED
        return _say(words, f"what it prints cannot be written: {error.strerror}", "", 1)


def command() -> int:
    """`main` as the last thing that a process does."""
    try:
        return main()
    finally:
        gc.freeze()  # before it ends Python looks for garbage several times, through all that torch has made: a second


def _guarded(words: Sequence[str]) -> int:
    """The status of a command; what ends it for a reason that a user can mend is said in a line."""
    try:
        return _run(words)
    except interrupts.Interrupted as stop:
        return _say(words, str(stop), stop.hint or BEGUN.get(words[0] if words else "", ""), stop.status)
    except BrokenPipeError:
        raise
    except FolderInUse as error:
        return _say(words, str(error), "wait for it, or end it, or choose another folder", 2)
    except OSError as error:
        where = "" if error.filename is None else f"{str(error.filename)!r}: "
        return _say(words, f"{where}{error.strerror or error}", getattr(error, "hint", ""), 1)
    finally:
        sys.stdout.flush()  # here a closed pipe is still an error that can be caught


def _run(words: Sequence[str]) -> int:
    if words[:1] in (["doctor"], ["bench"]):
        return _dispatch(words[0], words[1:])
    arguments = parsed(words)
    from lt_kernels.system.files import FileError
    from lt_kernels.train import MissingTrainer
    from lt_kernels.train.errors import ConfigError, RunFailed, ToldElsewhere

    try:
        return arguments.run(arguments)
    except (ConfigError, FileError, MissingTrainer) as error:
        return _say(words, str(error), "", 2)
    except RunFailed as error:
        return _say(words, str(error), error.hint, 1)
    except ToldElsewhere as error:
        return error.status


def _say(words: Sequence[str], what: str, hint: str, status: int) -> int:
    """One line on stderr: the command, what happened, and what to do next."""
    text = "; ".join(filter(None, [" ".join(what.split()), hint]))
    print(f"lt-kernels {next(iter(words), '')}: {text}", file=sys.stderr, flush=True)
    return status


def _dispatch(command: str, words: Sequence[str]) -> int:
    """Commands that read their own arguments."""
    if command == "doctor":
        from lt_kernels import doctor

        return doctor.main(words)
    # the benchmarks are part of the repository, not of the installed package
    if (ROOT / "benchmarks" / "run.py").exists() and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        module = importlib.import_module("benchmarks.run")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.run"):
            raise
        text = "the benchmarks are not in the installed package, but in its repository and source distribution"
        return _say(["bench"], text, "unpack that, and there: make bench", 2)
    return module.main(words)


if __name__ == "__main__":
    raise SystemExit(main())
