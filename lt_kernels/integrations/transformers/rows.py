"""A loss of this package as transformers calls its own: labels of -100, and a divisor for accumulated batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.losses import Loss

IGNORED = -100  # the label that transformers neither scores nor counts


def checked(loss: Any) -> Loss:
    """The loss, if its value for a batch is what `transformers` can take."""
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be one of lt_kernels.losses that takes logits, got {type(loss).__name__}")
    if loss.needs_features:
        raise ValueError(f"loss must be one of logits alone, got {type(loss).__name__}, which needs the features too")
    if loss.reduction != "mean":
        raise ValueError(f"loss must have reduction='mean', got {loss.reduction!r}")
    if loss.ignore_index != IGNORED:
        raise ValueError(f"loss must have ignore_index={IGNORED}, as transformers has, got {loss.ignore_index}")
    if loss.softcap is not None:
        raise ValueError(f"loss must have softcap=None, since a model caps its logits itself, got {loss.softcap!r}")
    return loss


def only_ignored(ignore_index: int) -> None:
    """Raise for another label to ignore, which the loss does not know."""
    if ignore_index != IGNORED:
        raise ValueError(f"ignore_index must be {IGNORED}, that of the loss, got {ignore_index}")


def shifted(labels: Tensor) -> Tensor:
    """The label of the next token for each token [B, T]; the last has none."""
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def reduced(evaluate: Callable[..., Tensor], items: Tensor | int | None, *given: Any, **changed: Any) -> Tensor:
    """`evaluate(*given)` of a loss, a mean, with some settings changed; with a number of items the rows' sum over it.

    The loss itself, which other threads may use, stays as it is.
    """
    if items is None:
        return evaluate(*given, changed=changed) if changed else evaluate(*given)
    found = evaluate(*given, changed=changed | {"reduction": "sum"})
    return found / (items.to(found.device) if isinstance(items, Tensor) else items)


def follow(loss: Loss, device: torch.device) -> None:
    """Move the loss's tables to the device of the logits, if they are elsewhere."""
    if any(table.device != device for table in loss.buffers()):
        loss.to(device)


class LabelLoss:
    """`loss` of logits [..., C] and labels [...]; `shift` scores each token by the label of the next one.

    It is no module, so that a model that holds it has the state_dict and the files of one that does not.
    """

    def __init__(self, loss: Loss, shift: bool) -> None:
        self.loss, self.shift = checked(loss), shift

    def __call__(
        self, logits: Tensor, labels: Tensor, items: Tensor | int | None = None, shift_labels: Tensor | None = None
    ) -> Tensor:
        """The loss; `items` is the number of labels of all batches that are accumulated into one step."""
        if self.shift:
            labels = shifted(labels) if shift_labels is None else shift_labels
        if labels.is_floating_point():
            raise TypeError(f"labels must hold class indices, got {labels.dtype}")
        logits = logits.float() if logits.dtype.itemsize < 4 and logits.ndim > 2 else logits
        labels = labels.reshape(-1).to(logits.device)
        follow(self.loss, logits.device)
        logits = logits.reshape(-1, logits.shape[-1])
        if items is None or self.loss.needs_logits:
            return self._mean(logits, labels, items)
        return reduced(self.loss.evaluate, items, logits, labels)

    def _mean(self, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """The loss; with a term of the whole batch it has no sum of rows, and counts as often as there are labels."""
        mean = self.loss(logits, labels)
        if items is None:
            return mean
        return mean * (labels != IGNORED).sum() / (items.to(mean.device) if isinstance(items, Tensor) else items)
