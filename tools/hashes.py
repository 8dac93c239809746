"""Write constraints-hashed.txt: the pins of constraints.txt with the SHA-256 of each wheel for Linux on x86-64.

python -m tools.hashes asks pip for the wheels of the pins that the file has not yet, for every Python that serves;
--all asks for all of them, which takes minutes. Not in it: torch, whose wheels differ between the CPU's and CUDA's
builds and from registry to registry, torchvision and timm, which lie in a folder of their own, jieba, which has no
wheel, and the peers of the benchmarks, which no setup installs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tools.pins import PYTHONS, ROOT, Pin, asked, key, pins

FILE = ROOT / "constraints-hashed.txt"
LEFT_OUT = {"torch", "torchvision", "timm", "jieba", "liger-kernel", "cut-cross-entropy"}
HEAD = """# The pins of constraints.txt, with the SHA-256 of their wheels for Linux on x86-64 (python -m tools.hashes).
# `make verify` installs them, and nothing whose hash is another.
"""


def main(argv: Sequence[str] | None = None, file: Path = FILE) -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser("python -m tools.hashes", description="Write constraints-hashed.txt.")
    parser.add_argument("--all", action="store_true", help="ask for every pin, not for the new ones alone")
    wanted = [pin for pin in pins() if pin.name not in LEFT_OUT]
    known = {} if parser.parse_args(argv).all or not file.exists() else hashed(file)
    found = known | _hashes_of([pin for pin in wanted if pin.line not in known])
    lines = [" \\\n    ".join([pin.line, *(f"--hash=sha256:{one}" for one in found[pin.line])]) for pin in wanted]
    file.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _hashes_of(wanted: Sequence[Pin]) -> dict[str, list[str]]:
    """The hashes of each pin's wheels, by its line."""
    found: dict[tuple[str, str], set[str]] = {}
    for python in PYTHONS if wanted else ():
        for one in asked(wanted, python):
            known = found.setdefault((key(one["metadata"]["name"]), one["metadata"]["version"]), set())
            known.add(one["download_info"]["archive_info"]["hashes"]["sha256"])
    return {pin.line: sorted(found[key(pin.name), pin.version]) for pin in wanted}


def hashed(file: Path = FILE) -> dict[str, list[str]]:
    """The hashes of each line of constraints.txt that the file holds."""
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", "")
    found = {}
    for line in text.splitlines():
        pin, *hashes = line.split(" --hash=sha256:")
        found[pin.strip()] = [digest.strip() for digest in hashes]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
