"""Per-class tables that a module holds: their values survive every change of dtype or device.

They are float64 buffers with a fixed place in the state. A cast moves them without rounding. The meta device,
`to_empty` and tools that build a model there leave them as they are, since these values could not be restored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def own_copy(table: Tensor) -> Tensor:
    """A float64 copy that shares no memory with the argument; autograd may keep it even if made in inference mode."""
    with torch.inference_mode(False):
        return table.detach().to(torch.float64, copy=True)


def follow(table: Tensor, device: torch.device) -> Tensor:
    """The table on another device; on the meta device it would lose its values, so it stays where it is."""
    return table if device.type == "meta" else table.to(device)


def described(settings: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> str:
    """Settings as a module's text has them, without the usual ones: tensors by dtype and shape, margins by theirs."""
    usual = usual or {}
    told = {
        name: value
        for name, value in settings.items()
        if isinstance(value, Tensor) or name not in usual or value != usual[name]
    }
    return ", ".join(f"{name}={_brief(value)}" for name, value in told.items())


def _brief(value: Any) -> str:
    if isinstance(value, Tensor) and value.ndim:
        return f"{str(value.dtype).removeprefix('torch.')}{[*value.shape]}"
    if dataclasses.is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return f"{type(value).__name__}({described(own)})"
    return repr(value)


class TableModule(nn.Module):
    """A module whose `tables` keep values and precision whatever happens to its dtype and device.

    `tables`: float64 buffers. `beside`: attributes that move along but are no part of the state. `sums`: buffers that
    small steps are added to, which follow every dtype but those of half precision.
    """

    tables: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ()
    _deferred = False  # built on the meta device, to be filled later
    _replaced: dict[str, Tensor] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._deferred = torch.get_default_device().type == "meta"

    def register_table(self, name: str, table: Tensor | None, persistent: bool = True) -> None:
        """Hold a copy of `table` as a buffer, which stays real even where new buffers are put on the meta device."""
        table = None if table is None else own_copy(table)
        self.register_buffer(name, table, persistent)
        self._buffers[name] = table

    def reset_parameters(self) -> None:
        """Reset what training has changed: nothing, for a module that has only tables."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TableModule:
        kept = {name: table for name in (*self.tables, *self.sums) if (table := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        for name, table in kept.items():
            now = self._buffers[name]
            assert now is not None  # it was there before
            if name in self.tables:
                self._buffers[name] = follow(table, now.device)
            elif now.dtype.itemsize < 4 and table.dtype is not now.dtype:
                self._buffers[name] = table.to(now.device)
        for name in self.beside:
            table = self.__dict__.get(name)
            if table is not None:
                self.__dict__[name] = follow(table, fn(table).device)
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        before = {name: self._buffers.get(name) for name in self.tables}
        super()._load_from_state_dict(*args, **options)
        for name, old in before.items():
            new = self._buffers.get(name)
            if new is not None and new is not old:  # load_state_dict(assign=True)
                self._buffers[name] = old if new.device.type == "meta" else own_copy(new)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.tables and self._deferred and isinstance(value, Tensor):
            old = self.__dict__.get("_buffers", {}).get(name)
            if old is not None and not getattr(value, "_is_hf_initialized", False):
                self.__dict__["_replaced"] = {**(self._replaced or {}), name: old}
        super().__setattr__(name, value)
        if name == "_is_hf_initialized" and value and self._replaced:
            # transformers puts an empty tensor where a checkpoint has none, does not mark it as loaded, and says with
            # this that it should be initialised by now.
            self._buffers.update(self._replaced)
            self.__dict__["_replaced"] = None


def reset_loss(loss: nn.Module) -> None:
    """Reset what a loss has learned or gathered; a head that was on the meta device has none of it."""
    for part in loss.modules():
        if isinstance(part, TableModule):
            part.reset_parameters()
