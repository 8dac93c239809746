"""Causal language models whose training step goes from features to the loss, without the logits of all tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lt_kernels.integrations.transformers.classes import Replaced, base_of, in_front, labels_of, named, plan_of
from lt_kernels.integrations.transformers.labels import OfKeywords, fitting
from lt_kernels.integrations.transformers.rows import LabelLoss, checked, follow, reduced, shifted
from lt_kernels.losses import CrossEntropyLoss, Loss

Model = TypeVar("Model")
CAP = "final_logit_softcapping"  # of a configuration: logits c tanh(logits / c)
_CLOSE = 1e-2  # half precision rounds by less, and a cap or a mask changes the logits that are tried by more


def fuse_causal_lm(model: Model, loss: Loss | None = None) -> Model:
    """Make training steps of a causal language model go from its features to the loss, and return the model.

    In training, with labels, `lm_head` hands on the features [B, T, d] and the loss is that of
    `lt_kernels.functional.linear_cross_entropy` with its class weights: the logits [B, T, V] are never there, and
    outputs have none. All else is the forward of the model's class, with its auxiliary losses. Evaluation, prediction
    and generation have the logits as before.

    Args:
        model: a language model whose `lm_head` is an `nn.Linear`; its logits may be scaled, or capped (Gemma 2).
            Change it before it is compiled, sharded or prepared.
        loss: one of `lt_kernels.losses` of logits, for evaluation too; None is cross-entropy, the library's own.

    Raises:
        TypeError, ValueError: naming the argument, if something else stands between `lm_head` and the loss. This is
            seen in forwards of four tokens.
    """
    base = base_of(model)
    used = checked(CrossEntropyLoss() if loss is None else loss)
    if used.needs_logits:
        raise ValueError(f"loss must not need all logits, got {type(loss).__name__}")
    fitting(base, used)
    _check_class(base)
    _check_head(base)
    if _cap(base) is not None and used.margin is not None:
        raise ValueError(f"loss must have no margin, since the model caps its logits, got {used.margin!r}")
    own = None if loss is None else OfKeywords(LabelLoss(loss, True))
    if own is not None:
        base.loss_function = own
    base.__class__ = in_front(_Fused, type(base))
    base._lt_loss = _OfFeatures(used, _cap(base), own)
    return model


def _check_class(model: Any) -> None:
    name = type(model).__name__
    if isinstance(model, _Fused) or "_loss_function" in vars(model):
        raise ValueError(f"model must have the loss of its class, got a {name} with another: give that as loss")
    plan = plan_of(model)
    if not (plan.calls and plan.shift):
        raise ValueError(f"model must be a causal language model that calls its loss_function, got a {name}")
    _linear(model)


def _linear(model: Any) -> nn.Linear:
    """The layer that makes the logits."""
    head = model._modules.get("lm_head")
    if type(head) is not nn.Linear:
        raise ValueError(f"model must have an nn.Linear as lm_head, got {type(head).__name__}")
    return head


@contextmanager
def _standing_in(model: Any, head: nn.Module, loss: Callable[..., Any], capped: bool = False) -> Iterator[None]:
    """Let the class's forward meet another `lm_head` and another loss, and no cap of the logits."""
    parts, held = model._modules, vars(model)
    before, config, own = parts["lm_head"], held["config"], held.get("_loss_function")
    held["config"], held["_loss_function"] = config if capped else _uncapped(config), loss
    parts["lm_head"] = head
    try:
        yield
    finally:
        parts["lm_head"], held["config"] = before, config
        if own is None:
            del held["_loss_function"]
        else:
            held["_loss_function"] = own


def _uncapped(config: Any) -> Any:
    if getattr(config, CAP, None) is None:
        return config
    config = copy.copy(config)
    setattr(config, CAP, None)
    return config


class _Given(nn.Module):
    """Stands in for `lm_head`, and shows its settings: what it is called with, or what it was given."""

    def __init__(self, head: nn.Linear, output: Tensor | None = None) -> None:
        super().__init__()
        shown = {name: getattr(head, name) for name in ("weight", "bias", "in_features", "out_features")}
        vars(self).update(shown, output=output)  # not registered, since the parameters are the head's

    def forward(self, features: Tensor) -> Tensor:
        return features if self.output is None else self.output


@torch.no_grad()
def _check_head(model: Any) -> None:
    """Raise unless logits reach the loss alone, as `lm_head`'s output times a number, capped as the configuration says.

    Two outputs are tried whose values, spread and width differ: what else is computed from them changes the loss.
    """
    head = _linear(model)
    features, logits = _tried(head, head.in_features, -1.25), _tried(head, head.out_features, 1.0)
    (passed, first), (seen, second) = _reaching(model, features, capped=False), _reaching(model, logits)
    scale = (passed[0, 0, 0] / features[0, 0, 0]).item() if passed.shape == features.shape else 0.0
    cap = _cap(model)
    expected = scale * logits.double()
    expected = expected if cap is None else cap * torch.tanh(expected / cap)
    kept = torch.allclose(passed.double(), scale * features.double(), rtol=_CLOSE)
    same = seen.shape == logits.shape and torch.allclose(seen.double(), expected, rtol=_CLOSE)
    alone = torch.allclose(first, second, rtol=_CLOSE, equal_nan=True)
    if not (kept and same and alone) or (scale != 1 and (head.bias is not None or cap is not None)):
        raise ValueError(
            f"model must compute its loss from lm_head's logits, at most scaled, or capped by {CAP}, and nothing else "
            f"from them; a {type(model).__name__} does more"
        )


def _tried(head: nn.Linear, width: int, factor: float) -> Tensor:
    """An output of `lm_head` for four tokens, from small to large, that differs from place to place."""
    rows = factor * torch.tensor([[-90.0], [-3.0], [2.0], [40.0]]) * torch.linspace(1.0, 0.5, width)
    return rows[None].to(head.weight)


def _reaching(model: Any, output: Tensor, capped: bool = True) -> tuple[Tensor, Tensor]:
    """What the loss of a model is computed from if this is the output of its `lm_head`, and what is added to the loss.

    The model is as before.
    """
    found: list[Tensor] = []

    def loss(logits: Tensor, *others: Any, **named: Any) -> Tensor:
        found.append(logits)
        return output.new_zeros((), dtype=torch.float32)

    head = _linear(model)
    ids = torch.arange(4, device=head.weight.device)[None] % head.out_features
    training = [(part, part.training) for part in model.modules()]
    model.eval()
    with _standing_in(model, _Given(head, output), loss, capped):
        outputs = model(input_ids=ids, labels=ids, use_cache=False, return_dict=True)
    for part, was in training:
        part.training = was
    return found[0], outputs.loss


def _cap(model: Any) -> float | None:
    return getattr(model.config, CAP, None)


def _full(features: Tensor) -> AbstractContextManager[Any]:
    """Autocast of the features' own dtype: the loss of half precision is then float32, as that of transformers is."""
    half = features.dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(features.device.type, features.dtype) if half else nullcontext()


class _OfFeatures:
    """The loss of features [B, T, d] in the place of logits, and of a language model's labels."""

    def __init__(self, loss: Loss, cap: float | None, own: OfKeywords | None) -> None:
        self.own = own  # the model's function in evaluation; None is the library's
        self.loss, self.changed = loss, {} if cap is None else {"softcap": cap}

    def __call__(
        self,
        head: nn.Linear,
        features: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None,
        shift_labels: Tensor | None,
    ) -> Tensor:
        labels = shifted(labels) if shift_labels is None else shift_labels
        if features.dtype.itemsize > head.weight.dtype.itemsize:  # of a class that takes its logits to float32
            features = features.to(head.weight.dtype)
        labels = labels.reshape(-1).to(features.device)
        follow(self.loss, features.device)
        rows = (features.reshape(-1, features.shape[-1]), head.weight, labels, head.bias)
        with _full(features):
            return reduced(self.loss.from_features, num_items_in_batch, *rows, **self.changed)


class _Fused(Replaced):
    """A model whose `lm_head` hands on the features in training."""

    _lt_loss: _OfFeatures

    def around(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        model: Any = self
        if not model.training or labels_of(forward, args, kwargs)[0] is None:
            return forward(*args, **kwargs)
        if vars(model).get("_loss_function") is not self._lt_loss.own:
            raise ValueError("model must keep the loss that it was fused with, got another loss_function afterwards")
        head = _linear(model)
        with _standing_in(model, _Given(head), OfKeywords(partial(self._lt_loss, head))):
            outputs, as_tuple = named(forward, model.config, args, kwargs)
        outputs = type(outputs)(**{name: value for name, value in outputs.items() if name != "logits"})
        return outputs.to_tuple() if as_tuple else outputs
