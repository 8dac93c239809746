"""Losses of this package in the models and the Trainer of transformers 5: docs/guides/transformers.md."""

from lt_kernels.integrations.transformers.causal import fuse_causal_lm
from lt_kernels.integrations.transformers.labels import compute_loss_func, use_loss

__all__ = ["compute_loss_func", "fuse_causal_lm", "use_loss"]
