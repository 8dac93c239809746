"""DTensors at the doors of the functions: which ranks share classes and rows, and what is this rank's part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_kernels.core.checks import is_dtensor
from lt_kernels.margins import MixedTarget
from lt_kernels.ops.ranks import exchange, shards
from lt_kernels.ops.ranks.reduction import Batch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def there(*values: Any) -> bool:
    """Whether a DTensor is among the values, or in a `MixedTarget` among them."""
    for value in values:
        if is_dtensor(value):
            return True
        if isinstance(value, MixedTarget) and there(value.first, value.second, value.lam):
            return True
    return False


def together(group: Any, like: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call function(*args, **kwargs), and raise its errors on every rank; it stays outside of compiled graphs.

    Raises:
        ValueError: if `group` is neither None nor a process group that this process belongs to.
    """
    if group is None:
        return function(*args, **kwargs)
    shards.checked(group)
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_together)(group, like, function, *args, **kwargs)
    return _together(group, like, function, *args, **kwargs)


def _together(group: Any, like: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with exchange.told(group, like):
        return function(*args, **kwargs)


def group_of(weight: Tensor) -> Any:
    """The process group over whose ranks class weights are sharded; None for plain tensors and whole ones."""
    sharded = [dim for dim, placement in enumerate(getattr(weight, "placements", ())) if _is_shard(placement)]
    return weight.device_mesh.get_group(sharded[0]) if sharded else None


def call(
    function: Callable[..., Tensor],
    rows: dict[str, Any],
    weights: dict[str, Any],
    settings: dict[str, Any],
    group: Any = None,
) -> Tensor:
    """A function of plain tensors, of this rank's classes of a group, or of DTensors; arguments as of `through`."""
    if there(*rows.values(), *weights.values(), *settings.values()):
        if group is not None:
            raise ValueError(f"group must be None with DTensors, whose mesh says the group, got {group!r}")
        return through(function, rows, weights, settings)
    if group is None:
        return function(**rows, **weights, settings=settings)
    return together(group, weights["linear_weight"], function, **rows, **weights, settings=settings, group=group)


def through(
    call: Callable[..., Tensor], rows: dict[str, Any], weights: dict[str, Any], tables: dict[str, Any], **more: Any
) -> Tensor:
    """call(**rows, **weights, settings=tables, group=, ranks=, **more) of this rank's parts; of all ranks the result.

    Args:
        rows: the logits or features by the name of their argument, first, and "target".
        weights: "linear_weight" and "linear_bias", or nothing.
        tables: settings, among them tensors that every rank holds alike.

    Returns:
        A DTensor if the logits or features are one, otherwise a plain tensor.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_through)(call, rows, weights, tables, more)
    return _through(call, rows, weights, tables, more)


def _through(
    call: Callable[..., Tensor],
    rows: dict[str, Any],
    weights: dict[str, Any],
    tables: dict[str, Any],
    more: dict[str, Any],
) -> Tensor:
    door = Door(rows, weights, tables)

    def opened() -> Tensor:
        door.check()
        own = {name: local(value) for name, value in {**rows, **weights, **tables}.items()}
        ranks = None if door.rows is None else Batch(door.mesh.get_group(door.rows))
        if ranks is not None:
            shared = [name for name in (*weights, *tables) if not (name == "offset" and door.by_row())]
            own.update(zip(shared, ranks.copies([own[name] for name in shared]), strict=True))
        settings = {name: own.pop(name) for name in tables}
        shard = None if door.classes is None else shards.of_chunks(weights["linear_weight"], door.classes)
        return call(**own, settings=settings, group=shard, ranks=ranks, **more)

    result: Callable[[], Tensor] = opened
    for dim in (door.classes, door.rows):
        if dim is not None:
            result = _telling(door.mesh.get_group(dim), door.input, result)
    return door.wrapped(result())


def _telling(group: Any, like: Any, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: together(group, like, call)


def sharded_over(name: str, value: Any) -> int | None:
    """The dimension of the mesh over which a DTensor's first dimension is sharded; None if every rank has all.

    Raises:
        ValueError: if it is placed in another way.
    """
    dims = [dim for dim, placement in enumerate(value.placements) if _is_shard(placement)]
    others = [one for one in value.placements if not (_is_shard(one) or one.is_replicate())]
    if others or len(dims) > 1 or (dims and name == "logits" and value.ndim < 2):
        raise ValueError(
            f"{name} must have placements Shard(dim=0), at most once, or Replicate(), got {list(value.placements)} "
            f"of shape {list(value.shape)}"
        )
    return dims[0] if dims else None


class Door:
    """The mesh of a call's DTensors, and which of its dimensions shard the classes and the rows."""

    def __init__(self, rows: dict[str, Any], weights: dict[str, Any], tables: dict[str, Any]) -> None:
        self.name, self.input = next(iter(rows.items()))
        self.beside = {name: value for name, value in rows.items() if name != self.name}
        self.weights, self.tables = weights, tables
        weight = weights.get("linear_weight")
        first = next(value for _, value in _parts({"": weight, **rows, **weights, **tables}) if is_dtensor(value))
        self.mesh = first.device_mesh
        self.classes, self.rows = self._sharded("linear_weight", weight), self._sharded(self.name, self.input)
        if self.rows is not None and self.rows == self.classes:
            raise ValueError(
                f"{self.name} must have placement Replicate() over the ranks that the classes are sharded over, got "
                "Shard(dim=0): redistribute it, with its targets"
            )

    def _sharded(self, name: str, value: Any) -> int | None:
        """The dimension of the mesh over which a tensor's first dimension is sharded."""
        if not is_dtensor(value):
            return None
        self._on_mesh(name, value)
        return sharded_over(name, value)

    def by_row(self) -> bool:
        """Whether the offset has a row for each row of the input."""
        offset: Any = self.tables.get("offset")
        if not isinstance(offset, Tensor) or offset.ndim < 2:
            return False
        classes = offset.shape[-1]
        if tuple(offset.shape) not in ((classes, classes), (1, classes, classes)):
            return True
        return is_dtensor(offset) and self.rows is not None and _is_shard(offset.placements[self.rows])

    def check(self) -> None:
        """Raise for an argument that is placed otherwise than its part in the call asks."""
        bias, weight = self.weights.get("linear_bias"), self.weights.get("linear_weight")
        if not is_dtensor(self.input) and (self.classes is None or self.mesh.ndim > 1):
            raise TypeError(
                f"{self.name} must be a DTensor as others are, got a plain tensor: DTensor.from_local with Replicate() "
                "if it is the same on every rank, with Shard(0) if each rank has rows of its own"
            )
        if bias is not None and is_dtensor(bias) != is_dtensor(weight):
            kinds = ("a plain tensor", "a DTensor")
            raise TypeError(
                f"linear_bias must be {kinds[is_dtensor(weight)]} as linear_weight is, got {kinds[is_dtensor(bias)]}"
            )
        self._placed("linear_bias", bias, self.classes)
        for name, value in _parts({**self.beside, "offset": self.tables.get("offset")}):
            if name == "offset" and not self.by_row():
                continue
            if self.rows is not None and isinstance(value, Tensor) and value.ndim and not is_dtensor(value):
                raise TypeError(f"{name} must be a DTensor with this rank's rows as {self.name} is, got a plain tensor")
            self._placed(name, value, self.rows)
        for name, value in self.tables.items():
            if name != "offset" or not self.by_row():
                self._placed(name, value, None)

    def _placed(self, name: str, value: Any, sharded: int | None) -> None:
        """Raise if a DTensor is not sharded over this dimension of the mesh alone."""
        if is_dtensor(value):
            self._on_mesh(name, value)
            wanted = self.placements(sharded)
            if list(value.placements) != wanted:
                raise ValueError(f"{name} must have placements {wanted} here, got {list(value.placements)}")

    def _on_mesh(self, name: str, value: Any) -> None:
        if value.device_mesh != self.mesh:
            raise ValueError(f"{name} must be on the mesh of the others, {self.mesh}, got {value.device_mesh}")

    def placements(self, sharded: int | None) -> list[Any]:
        """Shard(0) over one dimension of the mesh, Replicate() over the others."""
        from torch.distributed.tensor import Replicate, Shard

        return [Shard(0) if dim == sharded else Replicate() for dim in range(self.mesh.ndim)]

    def wrapped(self, found: Tensor) -> Tensor:
        """The result as a DTensor placed as the rows are, if these are a DTensor."""
        if not is_dtensor(self.input):
            return found
        shape = found.shape if found.ndim == 0 else (self.input.shape[0], *found.shape[1:])
        return of_local(found, self.mesh, self.placements(self.rows if found.ndim else None), shape)


def of_local(value: Tensor, mesh: Any, placements: list[Any], shape: Any) -> Any:
    """A DTensor of this shape from this rank's part; differentiable."""
    from torch.distributed.tensor import DTensor

    shape = torch.Size(shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)


def local(value: Any) -> Any:
    """This rank's part of a DTensor or of a `MixedTarget`; all else as it is."""
    if isinstance(value, MixedTarget):
        return MixedTarget(local(value.first), local(value.second), local(value.lam))
    return value.to_local() if is_dtensor(value) else value


def whole(value: Any) -> Any:
    """All of a DTensor, on every rank; all else as it is."""
    return value.full_tensor() if is_dtensor(value) else value


def columns(function: Callable[..., Tensor], features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """function(features, weight, bias) [..., C] of class weights; as a DTensor if these are one, by its own classes.

    Features that are a plain tensor are the same on every rank; a DTensor may have its rows sharded too.
    """
    if not is_dtensor(weight):
        return function(features, weight, bias)
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = weight.device_mesh
    everywhere = [Replicate()] * mesh.ndim
    input: Any = features if is_dtensor(features) else DTensor.from_local(features, mesh, everywhere, run_check=False)
    door = Door({"features": input}, {"linear_weight": weight, "linear_bias": bias}, {})
    door.check()
    partial = [Partial() if dim == door.classes else one for dim, one in enumerate(door.placements(door.rows))]
    summed = [Partial() if dim == door.rows else one for dim, one in enumerate(door.placements(door.classes))]
    parts = [one.to_local(grad_placements=summed) if is_dtensor(one) else one for one in (weight, bias)]
    found = function(input.to_local(grad_placements=partial), *parts)
    own = [Shard(found.ndim - 1) if dim == door.classes else one for dim, one in enumerate(door.placements(door.rows))]
    return of_local(found, mesh, own, (*input.shape[:-1], weight.shape[0]))


def summed(value: DTensor) -> DTensor:
    """A DTensor whose parts are added up where they are `Partial()`."""
    from torch.distributed.tensor import Replicate

    return value.redistribute(placements=[Replicate() if one.is_partial() else one for one in value.placements])


def _is_shard(placement: Any) -> bool:
    from torch.distributed.tensor import Shard

    return type(placement) is Shard and placement.dim == 0


def _parts(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, a `MixedTarget` in its three parts."""
    for name, value in values.items():
        if isinstance(value, MixedTarget):
            yield from ((name, value.first), (name, value.second), ("lam", value.lam))
        else:
            yield name, value
