"""The operators. A room has one file, with schemas, fake kernels, autograd functions, and the functions to call."""

from lt_kernels.ops.backends.library import extension_status, instruction_set, kernels_status
from lt_kernels.ops.backends.wings import use_kernels
from lt_kernels.ops.budget import memory_budget
from lt_kernels.ops.linear import linear_policy

__all__ = [
    "extension_status",
    "instruction_set",
    "kernels_status",
    "linear_policy",
    "memory_budget",
    "use_kernels",
]
