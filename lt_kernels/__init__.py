"""Fused losses for long-tailed and many-class recognition: see `lt_kernels.functional`, `losses` and `heads`."""

from lt_kernels import functional, heads, losses, metrics, posthoc, priors, regularizers, schedules
from lt_kernels.core import checks
from lt_kernels.ops import memory_budget

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "checks",
    "functional",
    "heads",
    "losses",
    "memory_budget",
    "metrics",
    "posthoc",
    "priors",
    "regularizers",
    "schedules",
]
