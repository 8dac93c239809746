"""How a command line is read: what shells complete, the hint for an option that is not known, and sub-commands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from lt_kernels.system.spelling import did_you_mean

# How the shells complete the name of a file or a folder, in shtab's words; by the metavar of the argument.
FILE = {
    "bash": "_shtab_compgen_files",
    "zsh": "_files",
    "fish": "(__fish_complete_path (commandline -ct))",
    "tcsh": "f",
}
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "fish": "(__fish_complete_directories)", "tcsh": "d"}
SHELLS = tuple(FILE)
COMPLETED = {"FILE": FILE, "PATH": FILE, "FOLDER": FOLDER, "RUN": FOLDER}


class Parser(argparse.ArgumentParser):
    """A parser that says of an option it does not know which one may be meant, and by what shells complete a value."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """An argument as argparse has it, and where shtab looks for it, the way to complete it."""
        action: Any = super().add_argument(*names, **options)
        if options.get("metavar") in COMPLETED:
            action.complete = COMPLETED[options["metavar"]]
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; what is left over is an error of the command that it was given to."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            options = re.findall(r"--\w[\w-]*", self.format_usage())
            hint = did_you_mean(left[0].partition("=")[0], options)
            self.error(f"unrecognized arguments: {' '.join(left)}{hint}")
        return found, left


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, description: str
) -> argparse.ArgumentParser:
    """A sub-command that calls `run` with its arguments, which are added to what is returned."""
    made = commands.add_parser(name, help=help, description=description)
    made.set_defaults(run=run)
    return made
