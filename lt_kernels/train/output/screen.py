"""Tables and progress on a terminal, or in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


class Screen(Console):
    """A terminal, or a pipe whose end is known as such: to rich it is an exit without a word."""

    def on_broken_pipe(self) -> None:
        """Have the command end as it does for every closed pipe."""
        raise BrokenPipeError


def print_table(shown: Console, table: Table) -> None:
    """Print a table in its whole width: one of cut numbers is none."""
    shown.width = max(shown.width, Console(width=1000).measure(table).maximum)
    shown.print(table)
