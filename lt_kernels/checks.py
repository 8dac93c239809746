"""Checks of arguments: each raises an error that names the argument, what it was and what it must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Choice = TypeVar("Choice")


def number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> float:
    """A finite number in [low, high], and greater than `above` if that is given."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    fits = -math.inf < value < math.inf and low <= value <= high and (above is None or value > above)
    if not fits:
        least = f"> {above}" if above is not None else f">= {low}"
        raise ValueError(f"{name} must be finite, {least} and <= {high}, got {value!r}")
    return float(value)


def whole(name: str, value: Any, low: int = 1) -> int:
    """An integer that is at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return value


def choice(name: str, value: Choice, allowed: Sequence[str]) -> Choice:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def floating(name: str, value: Any) -> Tensor:
    """A floating-point tensor of a dtype that the kernels read."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    return value


def vector(name: str, value: Any, classes: int, like: Tensor) -> Tensor:
    """A floating-point vector with a number for each class, on the device of `like`."""
    floating(name, value)
    if value.shape != (classes,):
        raise ValueError(f"{name} must have shape [{classes}], one number a class, got {list(value.shape)}")
    return same_device(name, value, like)


def same_device(name: str, value: Tensor, like: Tensor) -> Tensor:
    """A tensor on the device of another."""
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the input is, got {value.device}")
    return value


def features(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    """Features [N, d] or [d], class weights [C, d] and a bias [C] that belong together."""
    floating("input", input)
    floating("linear_weight", linear_weight)
    if linear_weight.ndim != 2 or linear_weight.shape[0] == 0:
        raise ValueError(f"linear_weight must be [C, d] with C at least 1, got {list(linear_weight.shape)}")
    if input.ndim not in (1, 2) or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"input must be [N, {linear_weight.shape[1]}] or [{linear_weight.shape[1]}] to match linear_weight "
            f"{list(linear_weight.shape)}, got {list(input.shape)}"
        )
    same_device("linear_weight", linear_weight, input)
    if not torch.is_autocast_enabled(input.device.type) and input.dtype != linear_weight.dtype:
        raise TypeError(f"linear_weight must be {input.dtype} as the input is, got {linear_weight.dtype}")
    if linear_bias is not None:
        vector("linear_bias", linear_bias, linear_weight.shape[0], input)


_KERNEL_ERRORS = (("target holds", IndexError), ("offset is -inf", ValueError))


def named(error: RuntimeError) -> Exception:
    """A C++ kernel's complaint as the error that Python users expect, without its trace; any other error as it is."""
    for start, kind in _KERNEL_ERRORS:
        found = str(error).find(start)
        if found >= 0:
            return kind(str(error)[found:].splitlines()[0])
    return error


def readable(*tensors: Tensor) -> bool:
    """Whether values can be looked at here and now: on a CPU, neither compiling nor under torch.func."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(one.device.type == "cpu" for one in tensors)


def counts(class_counts: Any, *, positive: bool = False) -> Tensor:
    """How many training samples each class has, as a float64 vector; `positive` asks for at least one of each."""
    try:
        value = torch.as_tensor(class_counts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"class_counts must be a 1-D tensor or sequence of counts, got {class_counts!r}") from error
    if value.ndim != 1 or value.numel() == 0:
        raise ValueError(f"class_counts must be 1-D with a count for each class, got shape {list(value.shape)}")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"class_counts must be integers or real numbers, got {value.dtype}")
    value = value.detach().to(torch.float64)
    if not readable(value):  # a loss checked them when it was made
        return value
    least, most = (end.item() for end in value.aminmax())  # NaN if there is one
    if not (least >= 0 and most < math.inf):
        raise ValueError(f"class_counts must be finite and >= 0, got {_first_bad(value)}")
    if most == 0:
        raise ValueError("class_counts must have a class with a count above 0, got zeros only")
    if positive and least == 0:
        where = int((value == 0).nonzero()[0])
        raise ValueError(f"class_counts must be above 0 for every class here, got 0 for class {where}")
    return value


def _first_bad(value: Tensor) -> str:
    bad = ~torch.isfinite(value) | (value < 0)
    where = int(bad.nonzero()[0])
    return f"{float(value[where])} for class {where}"


def indices(name: str, target: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    """Class indices of a given shape, as int64."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a tensor of class indices, got {type(target).__name__}")
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name} must hold class indices (int64), got {target.dtype}")
    if tuple(target.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(target.shape)}")
    same_device(name, target, like)
    return target if target.dtype == torch.int64 else target.to(torch.int64)
