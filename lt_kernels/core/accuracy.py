"""How many rows were right, counted on their device by the losses that are given the counter."""

from __future__ import annotations

import torch
from torch import Tensor


class Accuracy:
    """Counts rows whose target has the largest raw logit (or cosine), over all calls that it is given to.

    A tie counts as right; neither offset nor margin takes part, but a class whose offset is -inf is not there, and no
    rival. The numbers stay on the device of the rows: nothing waits for it until they are read. Where rows are sharded
    over ranks they are this rank's.
    """

    def __init__(self) -> None:
        self.right: Tensor | None = None  # [], int64: rows that were right
        self.counted: Tensor | None = None  # [], int64: rows that were looked at, which ignored ones are not

    def compare(self, own: Tensor, rival: Tensor, counts: Tensor) -> None:
        """Count rows by their target's logit [N] and the largest other one [N], among those that count [N]."""
        right, counted = ((own.detach() >= rival) & counts).sum(), counts.sum()
        self.right = right if self.right is None else self.right + right
        self.counted = counted if self.counted is None else self.counted + counted

    def reset(self) -> None:
        """Begin again at no rows."""
        self.right = self.counted = None

    def value(self) -> Tensor:
        """The share of rows that were right, [] in float64; NaN where none was counted.

        Raises:
            RuntimeError: if no loss was given it since it was made or reset.
        """
        if self.right is None or self.counted is None:
            raise RuntimeError("accuracy must be given to a loss before its value is read, got none")
        return self.right.to(torch.float64) / self.counted
