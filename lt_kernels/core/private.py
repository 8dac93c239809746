"""The private parts of torch that the package reads; each says why no public part does, and a test that it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FUNCTORCH = torch._C._functorch


def transformed() -> bool:
    """Whether a `torch.func` transformation (grad, vmap, jvp) is active, whose tensors have no values to read.

    Torch has no public function for this; `autograd.Function.apply` uses this one.
    """
    return _FUNCTORCH.peek_interpreter_stack() is not None


def dispatch_modes() -> bool:
    """Whether a dispatch mode such as `FakeTensorMode` or `FlopCounterMode` is active; no public function tells."""
    return torch._C._len_torch_dispatch_stack() > 0


def batched(value: Tensor) -> bool:
    """Whether a tensor is batched by `vmap` or `is_grads_batched`; no public function tells."""
    return _FUNCTORCH.is_legacy_batchedtensor(value) or _FUNCTORCH.is_batchedtensor(value)


def graph_kept() -> bool:
    """Whether the backward pass that runs was asked to keep its graph (`retain_graph=True`).

    If it was, a gradient that backward returns is needed again, so a copy has to be returned. Torch itself frees what
    `save_for_backward` keeps by the same flag, but no public function tells it.
    """
    return torch._C._autograd._get_current_graph_task_keep_graph()


def has_kernel(operator: str, key: str) -> bool:
    """Whether an operator, "library::name", has a kernel of its own for a dispatch key; no public function tells."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def onednn_enabled() -> bool:
    """Whether torch may use oneDNN; `torch.backends.mkldnn.is_available` says only whether it was built in."""
    return torch._C._get_mkldnn_enabled()


def onednn_linear(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """left @ right.T (+ bias) by oneDNN. Torch has it for its compiler; `F.linear` takes MKL whatever the processor."""
    return torch.ops.mkldnn._linear_pointwise.default(left, right, bias, "none", [], "")


def int8_instructions() -> bool:
    """Whether torch multiplies int8 matrices and the CPU has instructions for it; no public function tells."""
    names = ("_is_vnni_supported", "_is_amx_tile_supported")
    return hasattr(torch, "_int_mm") and any(getattr(torch.cpu, name, bool)() for name in names)


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of int8 matrices, exact in int32; the public products do not take integers of another width out."""
    return torch._int_mm(left, right)


def part_of(shape: Sequence[int], mesh: Any, placements: Sequence[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of this rank's part of a DTensor, and where it starts in the whole.

    Torch's checkpoints use this function; a DTensor has no public one that tells where its part starts.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    with torch.device("cpu"):  # it reads numbers, which tensors of the meta device have not
        return compute_local_shape_and_global_offset(tuple(shape), mesh, placements)


def left_to_itself(module: torch.nn.Module, names: Sequence[str]) -> None:
    """Have DDP leave out parameters and buffers of a module, by name; torch has no public way to tell it."""
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def averaged_over(parameter: Tensor) -> Any:
    """The process group over which the DDP module that runs averages a parameter, or None; no public function tells."""
    around = torch.nn.parallel.DistributedDataParallel._get_active_ddp_module()
    if around is None or all(one is not parameter for one in around._module_parameters):
        return None
    return around.process_group
