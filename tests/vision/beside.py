"""torchvision and timm beside a CPU build of torch, which has no build of torchvision: for tests and examples.

    python tests/vision/beside.py FILE [ARGUMENTS]
    python tests/vision/beside.py -m MODULE [ARGUMENTS]

runs a file or a module with both on its path. They lie in a folder of their own, since every library that looks for
torchvision in this environment would break on it: so they are imported in a process of their own, and other tests see
nothing of them.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "vision"
MISSING = f"torchvision and timm are neither installed nor in {FOLDER}, where make setup puts them"
# What torchvision's compiled part defines and its Python part asks for when it is imported.
SCHEMAS = ("nms", "qnms")


def installed() -> bool:
    """Whether torchvision and timm are installed as other packages are."""
    return all(importlib.util.find_spec(name) is not None for name in ("torchvision", "timm"))


def there() -> bool:
    """Whether they can be had, one way or the other."""
    return installed() or (FOLDER / "timm").is_dir()


def enter() -> None:
    """Put them on the path of this process, unless they are installed."""
    import torch

    if installed():
        return
    if torch.version.cuda is None:
        for name in SCHEMAS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.append(str(FOLDER))


if __name__ == "__main__":
    enter()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
