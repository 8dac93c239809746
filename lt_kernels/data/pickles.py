"""The pickles of the CIFAR archives, read without unpickling: a file's instructions are followed by a table of our own.

Numbers, byte strings, text, lists, tuples, dicts and arrays of uint8 are all that there is; nothing is imported and
nothing is called, whatever a file asks for.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class PickleError(ValueError):
    """What a pickle holds beside plain containers and arrays of uint8."""


class _Word(NamedTuple):
    """A name that a pickle refers to; it stands for itself."""

    name: str


class _Unsigned(NamedTuple):
    """The dtype uint8."""


class _Array:
    """An array of uint8; empty until its state comes."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


_MARK = object()
_WORDS = {"_reconstruct", "ndarray", "dtype"}  # of numpy, whatever its module is called in the version that wrote
_PASSED_ON = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_PYTHON_2 = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # bytes, which pickletools returns as text
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in _PASSED_ON:
            self.stack.append(argument)
        elif name in _PYTHON_2:
            self.stack.append(argument.encode("latin-1"))
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.taken(_TUPLES[name])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _OTHERS:
            _OTHERS[name](self, argument)
        else:
            raise PickleError(f"it has the instruction {name}")

    def taken(self, many: int) -> list[Any]:
        """The last objects of the stack, taken off it."""
        objects = [self.stack.pop() for _ in range(many)]
        return objects[::-1]

    def since_mark(self) -> list[Any]:
        """The objects above the last mark, taken off with it."""
        objects = []
        while (one := self.stack.pop()) is not _MARK:
            objects.append(one)
        return objects[::-1]

    def protocol(self, argument: int) -> None:
        if argument > pickle.HIGHEST_PROTOCOL:
            raise PickleError(f"it has the protocol {argument}")

    def memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        _container(self.stack[-1], list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = _container(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (bytes, str, int)):
                raise PickleError(f"it has a key of type {type(key).__name__}")
            target[key] = value

    def word(self, module: Any, name: Any) -> None:
        numpys = str(module).partition(".")[0] == "numpy" and name in _WORDS
        if not numpys and (module, name) != ("_codecs", "encode"):
            raise PickleError(f"it asks for {module}.{name}")
        self.stack.append(_Word(str(name)))

    def reduce(self, argument: Any) -> None:
        word, given = self.taken(2)
        known = isinstance(word, _Word) and isinstance(given, tuple)
        if known and word.name == "_reconstruct":
            self.stack.append(_Array())
        elif known and word.name == "dtype" and given and given[0] in ("u1", b"u1", "|u1", b"|u1"):
            self.stack.append(_Unsigned())
        elif known and word.name == "encode" and len(given) == 2 and given[1] in ("latin1", b"latin1"):
            self.stack.append(str(given[0]).encode("latin-1"))
        else:
            raise PickleError("it holds something else than arrays of uint8")

    def build(self, argument: Any) -> None:
        (state,) = self.taken(1)
        if isinstance(self.stack[-1], _Unsigned):  # a byte has no order: there is nothing to set
            return
        if not isinstance(self.stack[-1], _Array) or not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("it sets the state of something that is no array")
        _, shape, dtype, fortran, raw = state
        fits = isinstance(dtype, _Unsigned) and isinstance(raw, bytes) and isinstance(shape, tuple)
        if not fits or not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != len(raw):
            raise PickleError("it has an array whose shape, type and bytes do not belong together")
        self.stack[-1].value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _container(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise PickleError(f"it adds to something that is no {kind.__name__}")
    return value


_OTHERS: dict[str, Callable[[_Reader, Any], Any]] = {
    "PROTO": lambda reader, argument: reader.protocol(argument),
    "FRAME": lambda reader, argument: None,
    "STOP": lambda reader, argument: None,
    "POP": lambda reader, argument: reader.taken(1),
    "POP_MARK": lambda reader, argument: reader.since_mark(),
    "TUPLE": lambda reader, argument: reader.stack.append(tuple(reader.since_mark())),
    "LIST": lambda reader, argument: reader.stack.append(reader.since_mark()),
    "DICT": lambda reader, argument: (values := reader.since_mark(), reader.stack.append({}), reader.set_items(values)),
    "APPEND": lambda reader, argument: reader.append(reader.taken(1)),
    "APPENDS": lambda reader, argument: reader.append(reader.since_mark()),
    "SETITEM": lambda reader, argument: reader.set_items(reader.taken(2)),
    "SETITEMS": lambda reader, argument: reader.set_items(reader.since_mark()),
    "MEMOIZE": _Reader.memoize,
    "GLOBAL": lambda reader, argument: reader.word(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda reader, argument: reader.word(*reader.taken(2)),
    "REDUCE": _Reader.reduce,
    "BUILD": _Reader.build,
}


def read_plain(content: bytes) -> dict[str, Any]:
    """The dict that a pickle holds, its keys as text, its arrays as uint8.

    Errors: PickleError, saying what else it holds or that it is none.
    """
    reader = _Reader()
    try:
        for code, argument, _ in pickletools.genops(content):
            reader.step(code.name, argument)
        (stored,) = reader.stack
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, Warning) as error:
        raise PickleError(f"it is no whole pickle: {error}") from error
    if type(stored) is not dict:
        raise PickleError("it holds no dict")
    return {_text(key): _finished(value) for key, value in stored.items()}


def _text(key: Any) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)


def _finished(value: Any) -> Any:
    """The array in place of what was read of it; a list or another dict is as it is."""
    if not isinstance(value, _Array):
        return value
    if value.value is None:
        raise PickleError("it has an array without a state")
    return value.value
