"""The private parts of torch that the package reads; each says why no public part does, and a test that it is there."""

from __future__ import annotations

import torch
from torch import Tensor


def transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) is at work, whose tensors have no numbers that could be read.

    Torch has no public question for it; `autograd.Function.apply` asks this one.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def dispatch_modes() -> bool:
    """Whether a mode such as `FakeTensorMode` or `FlopCounterMode` is to see operators; no public question exists."""
    return torch._C._len_torch_dispatch_stack() > 0


def batched(value: Tensor) -> bool:
    """Whether a tensor stands for many at once, by `vmap` or `is_grads_batched`; no public question exists."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(value) or functorch.is_batchedtensor(value)


def graph_kept() -> bool:
    """Whether the backward pass that runs was asked to keep its graph (`retain_graph=True`).

    Then a gradient that is handed out is needed again. Torch frees what `save_for_backward` keeps, but offers no way to
    ask, and without one each gradient would have to be copied.
    """
    return torch._C._autograd._get_current_graph_task_keep_graph()


def has_kernel(operator: str, key: str) -> bool:
    """Whether an operator, "library::name", has a kernel of its own for a dispatch key; no public question exists."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def onednn_enabled() -> bool:
    """Whether torch may use oneDNN; `torch.backends.mkldnn.is_available` says only whether it was built in."""
    return torch._C._get_mkldnn_enabled()


def onednn_linear(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """left @ right.T (+ bias) by oneDNN. Torch has it for its compiler; `F.linear` takes MKL whatever the processor."""
    return torch.ops.mkldnn._linear_pointwise.default(left, right, bias, "none", [], "")


def int8_instructions() -> bool:
    """Whether this torch multiplies int8 matrices, and this CPU has instructions for it; no public question exists."""
    names = ("_is_vnni_supported", "_is_amx_tile_supported")
    return hasattr(torch, "_int_mm") and any(getattr(torch.cpu, name, bool)() for name in names)


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of int8 matrices, exact in int32; the public products do not take integers of another width out."""
    return torch._int_mm(left, right)
