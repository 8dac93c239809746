"""What ends a run with one line: a setting or a file that cannot be used, or a machine that gave out."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting or a file that cannot be used: the message names it, what it was and what is allowed."""


class RunFailed(RuntimeError):
    """A run that ended for a reason outside of its settings; `hint` says how to go on."""

    hint = ""


class ToldElsewhere(Exception):
    """What another process of the run has said already; this one ends with the same `status` and without a word."""

    def __init__(self, status: int) -> None:
        super().__init__(f"another process of the run ends with status {status}, and says why")
        self.status = status
