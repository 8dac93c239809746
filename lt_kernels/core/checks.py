"""Checks of arguments: each raises an error that names the argument, what it was and what it must be."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from lt_kernels.core import private
from lt_kernels.core.numbers import autocast

Choice = TypeVar("Choice")


def _plain(name: str, value: Any) -> Any:
    """Convert a numpy scalar, or a CPU tensor that holds one number, to a Python number; return all else as it is."""
    if type(value) in (float, int, bool):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        if value.requires_grad:
            raise TypeError(f"{name} must be a plain number, got a tensor that requires a gradient, which it has not")
        if value.device.type != "cpu":
            raise TypeError(f"{name} must be a plain number or a tensor on the CPU, got a tensor on {value.device}")
        return value.item()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> float:
    """A finite number in [low, high], and greater than `above` if that is given."""
    if type(value) is float and low <= value <= high and abs(value) < math.inf and (above is None or value > above):
        return value  # by far the most calls
    value = _plain(name, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    # An integer may be larger than every float without being an infinity.
    if not (abs(value) <= sys.float_info.max and low <= value <= high and (above is None or value > above)):
        least = f"> {above}" if above is not None else f">= {low}" if low > -math.inf else ""
        allowed = " and ".join(filter(None, ("finite", least, f"<= {high}" if high < math.inf else "")))
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return float(value)


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """An integer that is at least `low`, and at most `high` if that is given."""
    value = _plain(name, value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")
    return int(value)


def ignored(name: str, value: Any) -> int:
    """The `ignore_index`: any integer of 64 bits."""
    return whole(name, value, -(2**63), 2**63 - 1)


def choice(name: str, value: Choice, allowed: Sequence[str]) -> Choice:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def shown(value: Any) -> str:
    """A value in an error: of a tensor its dtype and shape."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    value = _plain(name, value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def flag_or(name: str, value: Any, word: str) -> Any:
    """True, False, or one word."""
    if isinstance(value, str) and value == word:
        return word
    value = _plain(name, value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or {word!r}, got {value!r}")
    return value


def released(value: Any) -> bool:
    """Whether a tensor's numbers are gone, as after `untyped_storage().resize_(0)`: reading them ends the process.

    To be asked only where tensors have memory of their own: not by a compiler, nor under torch.func.
    """
    if type(value) not in (Tensor, torch.nn.Parameter) or private.batched(value) or value.layout is not torch.strided:
        return False
    return value.data_ptr() == 0 and value.numel() > 0 and not value.is_meta


def all_stored(name: str, values: Sequence[Any]) -> None:
    """Raise if the storage of one of the tensors was released."""
    if torch.compiler.is_compiling() or private.transformed():
        return
    for value in values:
        if released(value):
            raise ValueError(f"{name} must have its numbers, got a tensor whose storage was released")


def stored(name: str, value: Tensor) -> Tensor:
    """A tensor whose storage was not released."""
    all_stored(name, (value,))
    return value


KINDS = (torch.float32, torch.bfloat16, torch.float64, torch.float16)  # that the kernels read


def is_dtensor(value: Any) -> TypeGuard[Any]:
    """Whether a value is a DTensor; asked by what it has, since most programs never import them."""
    return type(value) is not Tensor and isinstance(value, Tensor) and hasattr(value, "placements")


def floating(name: str, value: Any, dtensor: bool = False) -> Tensor:
    """A floating-point tensor of a dtype that the kernels read; a `dtensor` only where it is served."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not dtensor and is_dtensor(value):
        raise TypeError(f"{name} must be a plain tensor here, got a DTensor with placements {list(value.placements)}")
    if value.dtype not in KINDS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    return stored(name, value)


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


def features(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, part: bool = False, form: str = "N"
) -> None:
    """Features [d] or [N, d], or of any `form` "..."; class weights [C, d] (a `part` may have none), a bias [C]."""
    floating("input", input)
    floating("linear_weight", linear_weight)
    if linear_weight.ndim != 2 or (linear_weight.shape[0] == 0 and not part):
        raise ValueError(f"linear_weight must be [C, d] with C at least 1, got {list(linear_weight.shape)}")
    if input.ndim == 0 or (input.ndim > 2 and form == "N") or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"input must be [{form}, {linear_weight.shape[1]}] or [{linear_weight.shape[1]}] to match linear_weight "
            f"{list(linear_weight.shape)}, got {list(input.shape)}"
        )
    same_device("linear_weight", linear_weight, input)
    if not autocast(input) and input.dtype != linear_weight.dtype:
        raise TypeError(f"linear_weight must be {input.dtype} as the input is, got {linear_weight.dtype}")
    if linear_bias is not None:
        bias = vector("linear_bias", linear_bias, linear_weight.shape[0], input)
        if bias.dtype != input.dtype and not autocast(input):
            raise TypeError(f"linear_bias must be {input.dtype} as the input is, got {bias.dtype}")


_KERNEL_ERRORS = (("target holds", IndexError), ("offset is -inf", ValueError))


def named(error: RuntimeError) -> Exception:
    """A C++ kernel's complaint as the error that Python users expect, without its trace; any other error as it is."""
    for start, kind in _KERNEL_ERRORS:
        found = str(error).find(start)
        if found >= 0:
            return kind(str(error)[found:].splitlines()[0])
    return error


def known() -> bool:
    """Whether tensors have values here and now: neither compiling nor under torch.func or a mode (of fake tensors)."""
    return not (torch.compiler.is_compiling() or private.transformed() or private.dispatch_modes())


def readable(*tensors: Tensor) -> bool:
    """Whether values can be read without waiting for a device: `known`, and on a CPU."""
    return known() and all(one.device.type == "cpu" for one in tensors)


def by_key(name: str, value: Any) -> Any:
    """The numbers of a mapping, or of a vector with labels such as pandas' Series, by class; the rest as it is.

    Raises:
        ValueError: if the keys are not 0 to C - 1, each once; naming the first that is missing or none of them.
    """
    labels = getattr(value, "index", None)  # which is a method of a list
    labelled = labels is not None and not callable(labels) and callable(getattr(value, "items", None))
    if not (labelled or isinstance(value, Mapping)):
        return value
    found: dict[int, Any] = {}
    for key, entry in value.items():
        if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or key < 0:
            raise ValueError(f"{name} must have the classes 0 to C - 1 as keys, got {key!r}")
        if int(key) in found:
            raise ValueError(f"{name} must have each class once as a key, got {key!r} twice")
        found[int(key)] = entry
    missing = next((c for c in range(len(found)) if c not in found), None)
    if missing is not None:
        raise ValueError(f"{name} must have a key for every class 0 to {max(found)}, got none for class {missing}")
    return [found[c] for c in range(len(found))]


def by_class(name: str, value: Any, what: str = "a number") -> Tensor:
    """A number for each class as a new float64 vector: in their order, or by key where they have keys.

    What is no tensor comes to be where a tensor would, but never on the meta device: its values are there to be kept.
    """
    value = value if isinstance(value, Tensor) else _vector(name, by_key(name, value))
    if value.ndim != 1 or value.numel() == 0:
        raise ValueError(f"{name} must be 1-D with {what} for each class, got shape {list(value.shape)}")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be integers or real numbers, got {value.dtype}")
    return stored(name, value).detach().to(torch.float64, copy=True)


def _vector(name: str, value: Any) -> Tensor:
    """A sequence or array of numbers as float64."""
    if torch.compiler.is_compiling():  # the compiler cannot read an array's dtype
        return torch.as_tensor(value, dtype=torch.float64)
    array = np.empty(0, object)
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        how = ": priors.class_counts_of counts it" if isinstance(value, (data.Dataset, data.DataLoader)) else ""
        raise TypeError(f"{name} must be a 1-D tensor or sequence of numbers, got {value!r}{how}")
    home = torch.get_default_device()
    return torch.from_numpy(array.astype(np.float64)).to("cpu" if home.type == "meta" else home)


def shares(name: str, value: Tensor) -> Tensor:
    """Numbers in [0, 1]; their values are checked only where that does not wait for a device."""
    if value.numel() and readable(value):
        least, most = (end.item() for end in value.detach().aminmax())  # NaN if there is one
        if not (least >= 0 and most <= 1):
            wrong = least if not least >= 0 else most
            raise ValueError(f"{name} must be in [0, 1], got {wrong}")
    return value


def held(name: str, value: Tensor, instead: str = "give a list or an array") -> Tensor:
    """A tensor that is not on the meta device."""
    if value.device.type == "meta":
        raise ValueError(f"{name} must have values, got a tensor on the meta device: {instead}")
    return value


def counts(class_counts: Any, *, positive: bool = False, name: str = "class_counts") -> Tensor:
    """How many training samples each class has, as a new float64 vector; `positive` asks for at least one of each.

    A mapping, or a vector with labels such as pandas' `Series.value_counts()`, is read by key: 0 to C - 1, all there.
    """
    value = held(name, by_class(name, class_counts, "a count"))
    if not readable(value):  # a named loss has checked them at construction
        return value
    least, most = (end.item() for end in value.aminmax())  # NaN if there is one
    if not (least >= 0 and most < math.inf):
        where = int((~torch.isfinite(value) | (value < 0)).nonzero()[0])
        raise ValueError(f"{name} must be finite and >= 0, got {float(value[where])} for class {where}")
    if most == 0:
        raise ValueError(f"{name} must have a class with a count above 0, got zeros only")
    if positive and least == 0:
        where = int((value == 0).nonzero()[0])
        raise ValueError(f"{name} must be above 0 for every class here, got 0 for class {where}")
    return value


def indices(name: str, target: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    """Class indices of a given shape, as int64."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a tensor of class indices, got {type(target).__name__}")
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name} must hold class indices (int64), got {target.dtype}")
    if tuple(target.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(target.shape)}")
    same_device(name, stored(name, target), like)
    return target if target.dtype == torch.int64 else target.to(torch.int64)
