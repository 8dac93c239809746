"""One process of several that train runs one after another, as torchrun would start it; run by processes.py."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from pathlib import Path


def main(runs: Path) -> None:
    """Train each of the runs that a file lists, and leave what went wrong in it beside the file."""
    import torch.distributed as dist
    from cuts import cut
    from processes import still_batch_norm

    from lt_kernels.train.config import make_config
    from lt_kernels.train.run.training import train_run

    found: list[str] = []
    for one in json.loads(runs.read_text(encoding="utf-8")):
        os.environ["MASTER_PORT"] = str(one["port"])
        config, folder = make_config(one["settings"]), Path(one["folder"])
        try:
            with still_batch_norm():
                if one["until"] is None:
                    train_run(config, folder, one["resume"])
                else:
                    cut(one["until"], functools.partial(train_run, config, folder, one["resume"]))
            found.append("")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        if dist.is_initialized():
            dist.destroy_process_group()
    runs.with_name(f"{runs.stem}-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
