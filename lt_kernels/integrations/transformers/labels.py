"""Losses of logits: as `compute_loss_func` of a Trainer, and as the loss that a model computes of its labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from lt_kernels.heads import CosineHead
from lt_kernels.integrations.transformers.classes import Replaced, base_of, in_front, labels_of, named, plan_of
from lt_kernels.integrations.transformers.rows import LabelLoss, only_ignored
from lt_kernels.losses import Loss

Model = TypeVar("Model")


def compute_loss_func(model: Any, loss: Loss) -> Callable[..., Tensor]:
    """Return what `Trainer(model, compute_loss_func=...)` takes: `loss` of the model's logits and the batch's labels.

    Where the Trainer says how many labels all batches of an accumulated step hold, the value is the sum of the rows'
    losses over that number, and else the loss itself, as for the losses of transformers. Language models score each
    token by the next one's label, as transformers does for their class.

    Args:
        model: a classifier (of sequences, images, videos, audio, tokens) or a language model, or one of PEFT around it.
        loss: one of `lt_kernels.losses` with its mean, which takes logits; or cosines, if a `CosineHead` computes them.

    Raises:
        TypeError, ValueError: naming the argument, if the class needs its labels for more than a loss of logits.
    """
    base = base_of(model)
    _not_fused(base)
    plan = plan_of(base)
    if plan.calls and base.config.is_encoder_decoder:
        raise ValueError(f"model must not need its labels as inputs, got a {type(base).__name__}: take use_loss")
    fitting(base, loss)
    return _OfOutputs(LabelLoss(loss, plan.shift))


def use_loss(model: Model, loss: Loss) -> Model:
    """Make `model(..., labels=labels).loss` the value of `loss`, in training and evaluation, and return the model.

    Most classes compute `nn.CrossEntropyLoss()` themselves and never look at what is set as their `loss_function`;
    their forward is then called without labels, and the loss computed of its logits. The number of labels that a
    Trainer hands on is used as by `compute_loss_func`. The loss is no part of the model's state or files: call this
    again after `from_pretrained`.

    Args:
        model, loss: as for `compute_loss_func`. Change the model before it is compiled, sharded or prepared.

    Raises:
        TypeError, ValueError: naming the argument, for a class that would bypass the loss.
    """
    base = base_of(model)
    if isinstance(base, _WithLoss):
        base._lt_loss = LabelLoss(fitting(base, loss), False)
        return model
    _not_fused(base)
    plan = plan_of(base)
    label_loss = LabelLoss(fitting(base, loss), plan.shift)
    if plan.calls:
        base.loss_function = OfKeywords(label_loss)
    else:
        base.__class__ = in_front(_WithLoss, type(base))
        base._lt_loss = label_loss
    return model


def _not_fused(model: Any) -> None:
    if isinstance(model, Replaced) and not isinstance(model, _WithLoss):
        name = type(model).__name__
        raise ValueError(f"model must not be fused, got a fused {name}: give the loss to fuse_causal_lm instead")


def fitting(model: Any, loss: Loss) -> Loss:
    """The loss, if what it takes, logits or cosines, is what the model computes."""
    cosines = any(isinstance(part, CosineHead) for part in model.modules())
    if isinstance(loss, Loss) and (loss.input_kind == "cosine") != cosines:
        computes = "cosines, by its CosineHead" if cosines else "logits"
        raise ValueError(f"loss must take what the model computes, {computes}; {type(loss).__name__} does not")
    return loss


class _OfOutputs:
    """The protocol of the Trainer: a model's outputs, the labels, and the number of labels of the whole step."""

    def __init__(self, loss: LabelLoss) -> None:
        self.loss = loss

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if not isinstance(outputs, dict):
            raise TypeError(f"outputs must have names (return_dict=True), got {type(outputs).__name__}")
        if labels is None:
            raise ValueError("labels must be in every batch, got none")
        return self.loss(outputs["logits"], labels, num_items_in_batch)


class OfKeywords:
    """The protocol of `model.loss_function`: the arguments of the losses of transformers, by place or by name.

    loss: called with what the model gives, labels, num_items_in_batch and shift_labels.
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        only_ignored(ignore_index)
        return self.loss(logits, labels, num_items_in_batch, shift_labels)


class _WithLoss(Replaced):
    """A model whose forward never sees the labels: the loss is computed of the logits that it returns."""

    _lt_loss: LabelLoss
    accepts_loss_kwargs = True  # a Trainer hands on the number of labels, and divides by nothing else

    def around(
        self, forward: Callable[..., Any], *args: Any, num_items_in_batch: Tensor | int | None = None, **kwargs: Any
    ) -> Any:
        labels, args, kwargs = labels_of(forward, args, kwargs)
        if labels is None:
            return forward(*args, **kwargs)
        model: Any = self
        outputs, as_tuple = named(forward, model.config, args, kwargs)
        if outputs.get("loss") is not None:
            raise ValueError(f"labels must be the model's only ones, got others beside them in {type(self).__name__}")
        loss = self._lt_loss(outputs["logits"], labels, num_items_in_batch)
        outputs = type(outputs)(loss=loss, **{name: value for name, value in outputs.items() if name != "loss"})
        return outputs.to_tuple() if as_tuple else outputs
