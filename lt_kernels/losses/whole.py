"""Losses, and heads, whose value is no sum over the rows: they refuse weights of rows."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from lt_kernels.core import checks


class WholeBatch(nn.Module):
    """A module that refuses `sample_weight`, and says why: `no_rows`."""

    no_rows: ClassVar[str] = "the second part of its loss is that of the whole batch"

    def __call__(self, *args: Any, sample_weight: None = None, **options: Any) -> Any:
        """The module's forward, without weights of rows."""
        self.unweighed(sample_weight)
        return super().__call__(*args, **options)

    def unweighed(self, sample_weight: Any) -> None:
        """Raise for weights of rows."""
        if sample_weight is not None:
            owner, shown = type(self).__name__, checks.shown(sample_weight)
            raise ValueError(f"sample_weight must be None with {owner}: {self.no_rows}; got {shown}")
