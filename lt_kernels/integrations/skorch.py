"""Classifiers for scikit-learn: skorch's NeuralNetClassifier with the losses, the heads and right probabilities.

skorch takes the softmax of a network's output only if the criterion is an `nn.CrossEntropyLoss`; with any other loss
its `predict_proba` returns the output as it is.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lt_kernels.core.labels import labels_of
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.integrations.libraries import library
from lt_kernels.losses import BalancedSoftmaxLoss, Loss
from lt_kernels.priors import class_counts_of

__all__ = ["LongTailClassifier", "probabilities"]

Classifier: Any = library("skorch").NeuralNetClassifier


def probabilities(output: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale z) of logits, or of raw cosines with their loss's scale: [N, C] or [N, C, ...], of the same shape.

    It serves as `predict_nonlinearity` of skorch's own NeuralNetClassifier; `functools.partial` sets another scale.
    """
    return (scale * output).softmax(min(1, output.ndim - 1))


class LongTailClassifier(Classifier):
    """skorch's NeuralNetClassifier for a loss of `lt_kernels.losses`, or a head of `lt_kernels.heads`, as criterion.

    With a loss, the module's output is the logits, or raw cosines for a margin loss. With a head, which holds class
    weights and a loss, it is the features [N, d]; the head's loss may be a class, or a `functools.partial` of one,
    which is made with the counts. Class counts that a loss takes and are not given are counted from the `y` of `fit`,
    before `train_split`; labels are 0 to C - 1, with C the number of `classes` if these are given, else one more than
    the largest label. `predict_proba` is the softmax of the logits, or of cosines times their scale, unless
    `predict_nonlinearity` is given.

    Args:
        module: as of NeuralNetClassifier.
        criterion: a class of losses or heads, or an instance.
        options: those of NeuralNetClassifier, such as `criterion__tau` and `module__width`.

    Errors: ValueError if counts are needed and there is no `y` yet; what the loss says of its arguments.
    """

    def __init__(self, module: Any, *args: Any, criterion: Any = BalancedSoftmaxLoss, **options: Any) -> None:
        super().__init__(module, *args, criterion=criterion, **options)

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> LongTailClassifier:
        """Train from new, or on with `warm_start`; the classes are counted before the first epoch."""
        if not (self.warm_start and self.initialized_):
            self.class_counts_ = self._counts(X if y is None else y)
        return super().fit(X, y, **fit_params)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> LongTailClassifier:
        """Train on; the classes are counted at the first call."""
        if not self.initialized_:
            self.class_counts_ = self._counts(X if y is None else y)
        return super().partial_fit(X, y, classes, **fit_params)

    def _counts(self, labels: Any) -> Tensor:
        """How often each class is among the labels."""
        if self.classes is not None:
            return class_counts_of(labels, len(self.classes))
        found = torch.cat([part.reshape(-1) for part in labels_of(labels)])
        return class_counts_of(found, int(found.max()) + 1)

    def initialize_criterion(self) -> LongTailClassifier:
        """Make the loss or head, with class counts and the number of classes where it takes them."""
        given = self.get_params_for("criterion")
        for part in ("loss", None):
            made = given.get(part) if part else self.criterion
            if callable(made) and not isinstance(made, nn.Module):
                counted = self._counted(made, {} if part else given)
                given = {**given, part: made(**counted)} if part else counted
        self.criterion_ = self.initialized_instance(self.criterion, given)
        return self

    def _counted(self, made: Any, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments with the class counts and their number, if they are taken and not given."""
        taken = inspect.signature(made).parameters
        missing = [name for name in ("class_counts", "num_classes") if name in taken and name not in given]
        if missing and not hasattr(self, "class_counts_"):
            raise ValueError(f"criterion__{missing[0]} must be given where initialize() comes before fit(), got none")
        values = {name: self.class_counts_ if name == "class_counts" else len(self.class_counts_) for name in missing}
        return {**given, **values}

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of the classes [N, C]."""
        if self.predict_nonlinearity != "auto":
            return super().predict_proba(X)
        outputs = self.forward_iter(X, training=False)
        found = [self._probabilities(one[0] if isinstance(one, tuple) else one) for one in outputs]
        return torch.cat(found).numpy()

    def _probabilities(self, output: Tensor) -> Tensor:
        """The probabilities of a batch, on the CPU."""
        criterion = self.criterion_
        with torch.no_grad():
            if isinstance(criterion, (LinearHead, CosineHead)):
                return probabilities(criterion.scaled(output.to(criterion.weight.device))).cpu()
            cosine = isinstance(criterion, Loss) and criterion.input_kind == "cosine"
            return probabilities(output, criterion.scale if cosine else 1.0).cpu()
