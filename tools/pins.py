"""What constraints.txt pins, and what a registry says of it, asked by pip."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
LINE = re.compile(r'(?P<name>[\w.-]+)==(?P<version>[\w.+!]+)( ; python_version (?P<side>>=|<) "(?P<python>3\.\d+)")?')
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# glibc 2.39 to 2.17, and the older names of wheels for Linux on x86-64
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64"]
PLATFORMS += ["manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64", "any"]


class Pin(NamedTuple):
    """One line of constraints.txt, and its words."""

    line: str
    name: str
    version: str
    side: str | None
    python: str | None

    def serves(self, python: str) -> bool:
        """Whether it holds for a version of Python, such as 3.11."""
        if self.python is None:
            return True
        ours, bound = (int(text.partition(".")[2]) for text in (python, self.python))
        return ours >= bound if self.side == ">=" else ours < bound


def pins(path: Path = CONSTRAINTS) -> list[Pin]:
    """The pins of a file, in its order.

    Errors: ValueError naming the line that is none.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            words = LINE.fullmatch(line.strip())
            if words is None:
                raise ValueError(f"{path.name} must have `name==version` lines, got {line!r}")
            found.append(Pin(line.strip(), words["name"], words["version"], words["side"], words["python"]))
    return found


def asked(wanted: Iterable[Pin], python: str) -> list[Mapping[str, Any]]:
    """What pip's report says of the wheels that it would take on Linux and x86-64; nothing is installed."""
    words = ["install", "--dry-run", "--ignore-installed", "--target", str(ROOT / "nowhere"), "--report", "-"]
    text = _pip(words, wanted, python)
    return json.loads(text)["install"] if text else []


def fetched(wanted: Iterable[Pin], python: str, folder: Path) -> None:
    """Put these wheels into a folder."""
    _pip(["download", "--dest", str(folder)], wanted, python)


def _pip(words: Sequence[str], wanted: Iterable[Pin], python: str) -> str:
    """What pip prints, asked for the pins that serve a version of Python; nothing where none does."""
    serving = [f"{pin.name}=={pin.version}" for pin in wanted if pin.serves(python)]
    if not serving:
        return ""
    where = ["--python-version", python, *(word for platform in PLATFORMS for word in ("--platform", platform))]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", *words, *quiet, *where, *serving]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip found not every wheel for Python {python}:\n{done.stderr}")
    return done.stdout


def key(name: str) -> str:
    """A name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
