"""`python -m lt_kernels` is `lt-kernels`."""

from __future__ import annotations

from lt_kernels.cli import command

if __name__ == "__main__":
    raise SystemExit(command())
