"""What the sections of the GPU check share: where they run, what they say as they go, and what failed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import first_line
from lt_kernels import ops


class Broken(RuntimeError):
    """The device no longer answers: nothing more can be learned in this process."""


def answers(device: str) -> bool:
    """Whether the device still works: after an illegal access nothing does, after most other errors all does."""
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False


@dataclass
class Check:
    """One run of one section. Lines are printed as they come, because a run may be cut at any time."""

    device: str
    tiny: bool
    seed: int
    out: Path
    minutes: float
    around: dict[str, Any]
    interpret: bool = False
    failures: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def say(self, line: str = "") -> None:
        """One line of the report, in Markdown."""
        print(line, flush=True)

    def table(self, *header: str) -> None:
        """The head of a table."""
        self.say()
        self.row(*header)
        self.say("|" + "---|" * len(header))

    def row(self, *cells: object) -> None:
        """A line of a table."""
        self.say("| " + " | ".join(map(str, cells)) + " |")

    def fail(self, what: str) -> None:
        """Count a failure and say it, in a form that the reader of all sections finds."""
        self.failures.append(what)
        self.say(f"\n**FAIL** {what}\n")

    def left(self) -> float:
        """Seconds until the time that was given is over."""
        return 60 * self.minutes - (time.monotonic() - self.started)

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn an exception into a failure, and go on; unless the device is gone."""
        try:
            yield
        except Exception as error:
            self.fail(f"{what}: {first_line(error)}")
            if not answers(self.device):
                raise Broken(f"the device does not answer after {what}") from error

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """The kernels that are checked: the GPU's own, or on CPU tensors interpreted; else the reference."""
        if self.device == "cuda":
            return contextlib.nullcontext()
        return ops.use_kernels("triton" if self.interpret else "reference")
