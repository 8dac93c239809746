"""Objects by `class_path` and `init_args`, as configs of jsonargparse and Lightning name them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Made = TypeVar("Made")


def found(key: str, path: str) -> Callable[..., Any]:
    """The class or function that a dotted path names: an installed one, or one of the folder where the command runs.

    Errors: ValueError naming the key, the path and what is not there.
    """
    module, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file there stands in for an installed module
    try:
        value = getattr(importlib.import_module(module), name)
    except Exception as error:  # of a module that others have written
        allowed = "the path of a class or function that can be imported"
        raise ValueError(f"{key}.class_path must be {allowed}, got {path!r}: {_said(error)}") from error
    if not callable(value):
        raise ValueError(f"{key}.class_path must be the path of a class or function, got {path!r}, {value!r}")
    return value


def make(key: str, spec: Mapping[str, Any], base: type[Made], *first: Any) -> Made:
    """The `base` that `spec`, {class_path, init_args}, stands for, made of the arguments `first` and `init_args`.

    The class may also be a function that is annotated to return one: nothing else is called. Arguments are checked by
    their annotations, and those that are annotated with a class may be {class_path, init_args} too (jsonargparse).
    Errors: ValueError naming the key, and the argument that does not fit; ImportError naming the extra.
    """
    make_one = found(key, spec["class_path"])
    kind = make_one if inspect.isclass(make_one) else _returned(make_one)
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        allowed = f"a class that is a {base.__name__}, or a function that is annotated to return one"
        raise ValueError(f"{key}.class_path must name {allowed}, got {spec['class_path']!r}")
    known = list(inspect.signature(make_one).parameters)
    arguments = _checked(key, make_one, spec.get("init_args", {}), known[: len(first)])
    try:
        made = make_one(*first, **arguments)
    except ImportError:  # of a library that is missing, which the caller names
        raise
    except Exception as error:  # of what others have written
        raise ValueError(f"{key}: {spec['class_path']} cannot be made: {_said(error)}") from error
    if not isinstance(made, base):
        raise ValueError(f"{key}.class_path must make a {base.__name__}, got a {type(made).__name__}")
    return made


def _said(error: Exception) -> str:
    """The message of an error, with its kind where that says more than the message alone."""
    return (
        str(error) if isinstance(error, (ValueError, RuntimeError, ImportError)) else f"{type(error).__name__}: {error}"
    )


def _returned(function: Callable[..., Any]) -> Any:
    """What a function says that it returns."""
    try:
        return typing.get_type_hints(function).get("return")
    except (TypeError, NameError):  # a builtin has no annotations; others may name what is not there
        return None


def _checked(key: str, make_one: Callable[..., Any], given: Mapping[str, Any], taken: list[str]) -> dict[str, Any]:
    """The arguments, each of the type that its annotation asks for."""
    try:
        import jsonargparse
    except ImportError as error:
        raise ImportError(f"{key}.class_path needs jsonargparse: pip install 'lt-kernels[train]'") from error
    for name in taken:
        if name in given:
            raise ValueError(f"{key}.init_args must not name {name}, which is given, got {given[name]!r}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    options: dict[str, Any] = {"nested_key": key, "skip": set(taken), "fail_untyped": False}
    if inspect.isclass(make_one):
        declared = parser.add_class_arguments(make_one, instantiate=False, **options)
    else:
        declared = parser.add_function_arguments(make_one, **options)
    names = {name.removeprefix(f"{key}.") for name in declared}
    kinds = [one.kind for one in inspect.signature(make_one).parameters.values()]
    free = set(given) - names if inspect.Parameter.VAR_KEYWORD in kinds else set()
    for name in sorted(set(given) - names - free):
        allowed = ", ".join(sorted(names)) or "nothing"
        raise ValueError(f"{key}.init_args must be among {allowed}; got {name}")
    try:
        parsed = parser.parse_object({key: {name: value for name, value in given.items() if name not in free}})
        arguments = parser.instantiate(parsed)
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{key}.init_args: {' '.join(str(error).split())}") from error
    made = vars(arguments.get(key, jsonargparse.Namespace()))
    # what was not given keeps its own default, which the parser need not know
    return {name: value for name, value in made.items() if name in given} | {name: given[name] for name in free}
