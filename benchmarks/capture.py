"""CUDA graphs of a call, for those that check them and for those that time them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from benchmarks.results import first_line

Result = TypeVar("Result")


def syncs(run: Callable[[], Any]) -> str:
    """What `run` waits for the device with, or nothing; after a warm-up, which may."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return first_line(error)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""


def captured(run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of `run` and the tensors that each replay writes; `run` must not wait for the device (see `syncs`)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result
