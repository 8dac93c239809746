"""Where a command's words go: a pipe that closes, a full disk, a stream that is not there, letters that it has not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lt_kernels.system import terminal
from lt_kernels.system.interrupts import Interrupted
from tests.nursery import LIGHT, ROOT, Nursery

# what a command prints, without the seconds that one takes to start
PROGRAM = """
from lt_kernels import cli
cli._run = lambda words: {action}
sys.exit(cli.main(["doctor"]))
"""


def piped(action: str, shell: str, **surroundings: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a program within a shell's words; `$P` stands for it."""
    environment = {**os.environ, "PROGRAM": LIGHT + PROGRAM.format(action=action), **surroundings}
    words = shell.replace("$P", f'"{sys.executable}" -c "$PROGRAM"')
    done = subprocess.run(["bash", "-c", words], capture_output=True, env=environment, timeout=200)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_pipe_that_closes_is_a_quiet_end() -> None:
    many = 'print("line\\n" * 100_000) or 0'
    assert piped(many, "set -o pipefail; $P | head -1") == (141, "line\n", "")
    assert piped(f"{many} or print('more')", "set -o pipefail; $P | true")[2] == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
def test_a_full_disk_for_the_words_is_a_line() -> None:
    status, _, line = piped("print('word') or 0", "$P > /dev/full")
    assert status == 1
    said = r"lt-kernels doctor: (what it prints cannot be written: )?No space left on device\n"
    assert re.fullmatch(said, line), "where Python keeps nothing back, it is known at once"


def test_a_stream_that_is_not_there_takes_anything() -> None:
    assert piped("print('word') or 0", "$P >&-") == (0, "", "")
    assert piped("print('word', file=sys.stderr) or 0", "$P 2>&-") == (0, "", "")


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def test_letters_that_a_terminal_has_not_are_told_in_others() -> None:
    letters = "print('1.0 \\u00b1 0.5, B_D\\u00b2, \\u00e9, \\udcff') or 0"
    assert piped(letters, "$P", **ASCII) == (0, "1.0 +/- 0.5, B_D^2, \\xe9, \\udcff\n", "")
    assert piped(letters, "$P", PYTHONIOENCODING="utf-8")[1] == "1.0 \u00b1 0.5, B_D\u00b2, \u00e9, \\udcff\n"


def test_a_table_is_drawn_in_the_letters_of_its_terminal() -> None:
    pytest.importorskip("rich", reason="the extra [train] is not installed")
    from rich.console import Console

    from lt_kernels.train.compare.tables import Spread, Summary, rich_table

    values = {"all": Spread(12.34, 0.56), "seconds_per_epoch": Spread(1.0, None)}
    table = rich_table([Summary("ce", 3, values, "cross-entropy")], "accuracy", "ascii")
    console = Console(file=open(os.devnull, "w", encoding="ascii"), width=60)  # noqa: SIM115 (closed with its console)
    with console.capture() as shown:
        console.print(table)
    console.file.close()
    lines = [line for line in shown.get().splitlines() if line.strip()]
    assert shown.get().isascii()
    assert "12.3 +/- 0.6" in shown.get()
    assert len({len(line) for line in lines[1:]}) == 1, "columns stand under one another"


# As in a process that is started under ASCII: what its streams take, and what its files are by default.
IN_ASCII = """
import locale
locale.setlocale(locale.LC_ALL, "C")
with open(os.devnull) as file:
    assert file.encoding in ("ascii", "ANSI_X3.4-1968"), file.encoding
sys.stdout.reconfigure(encoding="ascii", errors="strict")
sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")
"""


@pytest.mark.slow
def test_a_comparison_on_an_ascii_terminal(nursery: Nursery, tmp_path: Path) -> None:
    words = ["compare", "--data", "digits-lt", "--methods", "ce,bs", "--seeds", "2", "--epochs", "1", "--jobs", "1"]
    status, printed = nursery.run(*words, "--out", tmp_path / "out", before=IN_ASCII)
    assert status == 0, printed
    assert "+/-" in printed
    assert printed.isascii()
    assert "\u00b1" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8"), "files are UTF-8 everywhere"


def test_words_for_a_terminal() -> None:
    assert terminal.shown("1 \u00b1 2", "ascii") == "1 +/- 2"
    assert terminal.shown("1 \u00b1 2", "latin-1") == "1 \u00b1 2"
    assert terminal.shown("1 \u00b1 2", "utf-8") == "1 \u00b1 2"


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (1, 129)])
def test_the_status_of_a_signal(number: int, status: int) -> None:
    assert Interrupted(number).status == status


KEPT = {"doctor": "", "bench": "; cases that were measured are kept", "train": "; nothing was begun"}


@pytest.mark.parametrize(("command", "number"), [("doctor", 2), ("bench", 15), ("train", 2)])
def test_a_signal_ends_every_command_with_a_line(command: str, number: int) -> None:
    raised = f"__import__('os').kill(__import__('os').getpid(), {number}) or __import__('time').sleep(30)"
    reset = "__import__('signal').signal(2, __import__('signal').default_int_handler) and 0 or 0"
    program = PROGRAM.format(action=raised).replace("doctor", command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"{reset}\n{LIGHT}{program}"], capture_output=True, env=environment, timeout=200
    )
    assert done.returncode == 128 + number
    name = {2: "SIGINT", 15: "SIGTERM"}[number]
    assert done.stderr.decode() == f"lt-kernels {command}: interrupted by {name}{KEPT[command]}\n"
