"""How many processes a run has, and starting them by torchrun's own library. Imports no torch before it starts some."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from lt_kernels.train.config import TrainConfig
from lt_kernels.train.errors import ConfigError, RunFailed

FAILED, REFUSED = 1, 2  # statuses of a process that ended with an error: the machine's, or the settings'


def launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """The number of this process among those that torchrun has started; 0 without it."""
    return int(os.environ["RANK"]) if launched() else 0


def restarted() -> bool:
    """Whether torchrun has started the processes again, after one of them failed."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def placement(config: TrainConfig) -> tuple[int, int]:
    """The processes on each machine and the machines: as torchrun has started them, or as the config asks for them.

    Errors: ConfigError naming devices or nodes where the two differ, and nodes where nobody started processes there.
    """
    if not launched():
        if config.nodes > 1:
            raise ConfigError(f"nodes must be 0 or 1 unless torchrun starts the processes on each, got {config.nodes}")
        return config.devices or 1, 1
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // devices
    for key, asked, there in (("devices", config.devices, devices), ("nodes", config.nodes, nodes)):
        if asked not in (0, there):
            raise ConfigError(f"{key} must be 0 or {there}, as torchrun has started the processes, got {asked}")
    return devices, nodes


def start(words: Sequence[str], devices: int) -> int:
    """Run `lt-kernels WORDS` in `devices` processes of this machine, and return their status.

    Errors: RunFailed where a process was ended by a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it, which says so at length
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes have said why they ended
    arguments = ["--standalone", f"--nproc-per-node={devices}", "--module", "lt_kernels", *words]
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        for number, code in codes.items():
            if code < 0 and (code != -signal.SIGTERM or len(codes) == 1):  # by which torchrun ends the others
                name = signal.Signals(-code).name
                raise RunFailed(f"process {number} of {devices} was ended by {name}, and the others with it") from None
        return REFUSED if REFUSED in codes.values() else FAILED
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0
