"""How a model class of transformers computes its loss, read from its forward; and a class with another forward."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from lt_kernels.integrations.libraries import library

library("transformers")
losses: Any = library("transformers.loss.loss_utils")
PreTrainedModel: Any = library("transformers").PreTrainedModel

CLASSES = ("Sequence", "Image", "Video", "Audio", "Token")  # kinds of a class named ...ForXClassification
BY_HAND = {*(f"For{kind}Classification" for kind in CLASSES), "ForMaskedLM"}
FUNCTIONS = {losses.ForCausalLMLoss, losses.ForMaskedLMLoss}


class Plan(NamedTuple):
    """calls: whether the class calls `self.loss_function`, so that another one can be set; shift: to the next token."""

    calls: bool
    shift: bool


def base_of(model: Any) -> Any:
    """The model of transformers, without the adapters of PEFT around it."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel of transformers, got {type(model).__name__}")
    if "forward" in vars(model):
        raise ValueError("model must have the forward of its class: change its loss before accelerate prepares it")
    return model


def plan_of(model: Any) -> Plan:
    """How the loss of a model can be replaced; an error where it cannot, or where it is no cross-entropy of classes."""
    name, kind = type(model).__name__, getattr(model, "loss_type", None)
    problem, labels = model.config.problem_type, model.config.num_labels
    code = inspect.unwrap(type(model).forward).__code__
    if kind in BY_HAND - {"ForMaskedLM"} and (labels == 1 or problem not in (None, "single_label_classification")):
        raise ValueError(f"model must score classes, one a sample: got {labels} labels and problem_type {problem!r}")
    if "loss_function" in code.co_names and losses.LOSS_MAPPING.get(kind, losses.ForCausalLMLoss) in FUNCTIONS:
        if "CrossEntropyLoss" in code.co_names:
            raise ValueError(f"model must compute one loss of its labels, got a {name}, which computes several")
        return Plan(True, losses.LOSS_MAPPING.get(kind, losses.ForCausalLMLoss) is losses.ForCausalLMLoss)
    if kind not in BY_HAND:
        raise ValueError(
            "model must be a classifier of sequences, images, videos, audio or tokens, or a language model that calls "
            f"its loss_function; the forward of a {name} computes another loss itself and would bypass this one"
        )
    other = other_reads(inspect.unwrap(type(model).forward))
    if other:
        raise ValueError(f"model must use its labels for nothing but the loss of all of them, got a {name}: {other}")
    return Plan(False, False)


def other_reads(forward: Callable[..., Any]) -> str:
    """What a forward reads its labels for beside `if labels is not None:`, or reads there beside the labels."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == _GIVEN]
    inside = {id(name): name for block in blocks for name in ast.walk(block) if isinstance(name, ast.Name)}
    if not {"CrossEntropyLoss", "loss_function"} & _names(blocks):
        return "it hands them on"
    outside = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in inside]
    if any(node.id == "labels" for node in outside):
        return "it also reads them elsewhere"
    given = set(inspect.signature(forward).parameters) - {"self", "labels", "kwargs"}
    read = {name.id for name in inside.values() if isinstance(name.ctx, ast.Load)} & given
    return f"its loss also depends on {', '.join(sorted(read))}" if read else ""


_GIVEN = "labels is not None"


def _names(blocks: list[ast.If]) -> set[str]:
    """The names and attributes in some statements."""
    nodes = [node for block in blocks for node in ast.walk(block)]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


class Replaced:
    """The front of a class whose forward is replaced: `around(forward, *args, **kwargs)` is called in its place."""

    def around(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the forward of the class."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        front, own = type(self).__bases__
        return _made_again, (front, own), self.__dict__


@functools.cache
def in_front(front: type[Replaced], own: type) -> type:
    """The class of a model with `front` before it, under the same name, so that files and messages stay the same."""
    forward = own.forward  # type: ignore[attr-defined]

    @functools.wraps(forward)
    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.around(functools.partial(forward, self), *args, **kwargs)

    same = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(own.__name__, (front, own), {"forward": replaced, **same})


def _made_again(front: type[Replaced], own: type) -> Any:
    """An empty model of the class that `in_front` makes, for pickle and copy to fill."""
    made = in_front(front, own)
    return made.__new__(made)  # type: ignore[call-overload]


def labels_of(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple, dict]:
    """The labels among the arguments of a forward, and the arguments without them."""
    if "labels" in kwargs:
        return kwargs["labels"], args, {name: value for name, value in kwargs.items() if name != "labels"}
    place = list(inspect.signature(forward).parameters).index("labels")
    if len(args) <= place:
        return None, args, kwargs
    return args[place], (*args[:place], None, *args[place + 1 :]), kwargs


def named(forward: Callable[..., Any], config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """The outputs of a forward by their names, and whether the caller wants a tuple."""
    wanted = kwargs.get("return_dict")
    outputs = forward(*args, **{**kwargs, "return_dict": True})
    return outputs, not (config.return_dict if wanted is None else wanted)
