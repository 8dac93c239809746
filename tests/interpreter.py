"""Triton's interpreter without the work that it repeats: a fifth of the time of most kernels is left.

Before a function runs, the interpreter puts its own builtins in place of the language's. It looks through all names of
the language for that, also at each call of a function within a kernel, where all is in place. Here what goes where is
looked up once, and put in place once a launch. What is computed, and what is checked, is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Patches:
    """Takes the place of the interpreter's `_patch_lang`, and of the scope that it returns, which ends the launch."""

    def __init__(self, interpreter: Any) -> None:
        language, self.missing = interpreter.tl, interpreter._MISSING
        seen = SimpleNamespace(__globals__={"tl": language, "core": language.core})  # all that functions may see
        scope = interpreter._patch_lang(seen)
        places = list(dict.fromkeys((place, name) for place, name, _ in scope._changes))
        self.ours = [(*place, getattr(*place)) for place in places]
        scope.restore()
        self.before = [(*place, getattr(*place, self.missing)) for place in places]
        self.launched = False

    def __call__(self, function: Any) -> Patches:
        """A kernel or a function of one begins."""
        if not self.launched:
            self.launched = True
            for place, name, value in self.ours:
                setattr(place, name, value)
        return self

    def restore(self) -> None:
        """A kernel has ended."""
        for place, name, value in self.before:
            if value is self.missing:
                delattr(place, name)
            else:
                setattr(place, name, value)
        self.launched = False


def number_type(interpreter: Any) -> Callable[[Any], Any]:
    """NumPy's dtype for a type of the language, which the interpreter makes a whole table for, each time."""
    plain, known = interpreter._get_np_dtype, {}

    def looked_up(kind: Any) -> Any:
        if type(kind) is not interpreter.tl.dtype:
            return plain(kind)
        if kind.name not in known:
            known[kind.name] = plain(kind)
        return known[kind.name]

    return looked_up


def overflow(semantic: Any) -> Callable[..., None]:
    """The check that sums of integers fit, only where it is heard: without debugging, its answer goes nowhere."""
    plain = semantic.binary_op_sanitize_overflow_impl

    def check(self: Any, *operation: Any) -> None:
        if self.builder.options.debug:
            plain(self, *operation)

    return check


def begin(core: Any) -> Callable[[Any, Any, Any], None]:
    """The constructor of blocks and numbers: what is made of the shape is kept with the type, which blocks share."""

    def make(self: Any, handle: Any, kind: Any) -> None:
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        if "_made" not in kind.__dict__:
            sizes = list(kind.shape) if kind.is_block() else []
            kind._made = core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(math.prod(sizes))
        self.shape, self.numel = kind._made

    return make


def same_shape(block: Any, number: type) -> Callable[[Any, Any], Any]:
    """The type of a block of the same shape with other numbers in it, which is kept with the type."""
    plain = block.with_element_ty

    def looked_up(self: Any, kind: Any) -> Any:
        if type(kind) is not number:  # a pointer
            return plain(self, kind)
        others = self.__dict__.setdefault("_others", {})
        if kind.name not in others:
            others[kind.name] = plain(self, kind)
        return others[kind.name]

    return looked_up


def quicken() -> None:
    """From now on the interpreter of this process, if it has one of the kind that is known here, is the quick one."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    if hasattr(interpreter, "_LangPatchScope") and not isinstance(interpreter._patch_lang, Patches):
        core, semantic = interpreter.tl.core, interpreter.TritonSemantic
        interpreter._patch_lang = Patches(interpreter)
        interpreter._get_np_dtype = number_type(interpreter)
        semantic.binary_op_sanitize_overflow_impl = overflow(semantic)
        core.tensor.__init__ = begin(core)
        core.block_type.with_element_ty = same_shape(core.block_type, core.dtype)
