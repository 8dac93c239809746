"""Frames, which all ranks of a group gather before they continue, so that an error on one rank is raised on all.

A frame is a head of numbers, followed by a payload. Its size is that of the last frame, which every rank knows even if
an error has occurred on it. So a rank with an error can still take part in the collective, and heads show if the ranks
are at different calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import SPLITMIX_STEP, mixed

KINDS = ("layout", "forward", "backward", "clip_grad_norm_", "gather_batch", "batch_sums", "repulsion")
# Places in the head: among them the text of an error (240 bytes), the sums of a shard's first rows, and the checks.
KIND, CALL, LENGTH, FAILED, TEXT, SIZE, ROWS, CHECKS, HEAD = 0, 1, 2, 3, 4, 34, 35, 39, 80


# What is forgotten most often where a value differs.
_ADVICE = {"input": " (each rank's part of a batch is gathered by lt_kernels.distributed.gather_batch)"}


class RankError(ValueError):
    """An error on one rank of a group, or a difference between ranks, raised on every rank."""


class Check(NamedTuple):
    """A value that must be the same on every rank, as a number to compare, and in words for this rank's error."""

    name: str
    value: int | Tensor
    here: str


class _Talk:
    """The state of a group's exchanges on this rank; it is the same on every rank."""

    def __init__(self) -> None:
        self.room = 0  # numbers of the last payload
        self.met = 0  # frames exchanged so far
        self.over = 0  # calls after their last exchange, or a failed one: other ranks no longer wait for their errors
        self.epoch = 0  # how often ranks were found to make different calls
        self.pending: tuple[Any, Tensor, list[Check]] | None = None  # heads that are being copied to the host


_talks: WeakKeyDictionary[Any, _Talk] = WeakKeyDictionary()


def talk_of(group: Any) -> _Talk:
    """The state of a group's exchanges."""
    return _talks.setdefault(group, _Talk())


@contextmanager
def told(group: Any, like: Any) -> Iterator[None]:
    """An error within the context, before its exchange, is raised on every rank; frames are on the device of `like`."""
    talk = talk_of(group)
    over = talk.over
    try:
        yield
    except Exception as error:
        if talk.over == over:
            _tell(group, talk, error, like.device if isinstance(like, Tensor) else torch.device("cpu"))
        raise


def _tell(group: Any, talk: _Talk, error: Exception, device: torch.device) -> None:
    """Send the frame of an error; the frames of other ranks are ignored, because this rank raises its own error."""
    known = checks.named(error) if isinstance(error, RuntimeError) else error
    text = f"{type(known).__name__}: {known}".encode()[: 8 * (SIZE - TEXT)]
    words = torch.frombuffer(bytearray(text.ljust(8 * (SIZE - TEXT), b"\0")), dtype=torch.int64)
    talk.over += 1
    talk.met += 1
    frame = torch.zeros(HEAD + talk.room, dtype=torch.int64, device="cpu")
    frame[FAILED], frame[TEXT:SIZE] = 1, words
    gather(frame.to(device), group)


def gather(mine: Tensor, group: Any) -> Tensor:
    """Every rank's row [world, ...]."""
    all_of = mine.new_empty((dist.get_world_size(group), *mine.shape))
    dist.all_gather(list(all_of.unbind(0)), mine, group=group)
    return all_of


def meet(
    group: Any,
    kind: str,
    device: torch.device,
    said: Sequence[Check] = (),
    *,
    size: int = 0,
    rows: Tensor | None = None,
    payload: Tensor | None = None,
    call: int | None = None,
    wait: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Exchange frames: all ranks' heads [world, HEAD] and payloads [world, n], after the checks of `said`.

    On a CPU the heads are checked here. On a GPU that would synchronise, so it is done only with `wait`, or if the
    payload's size changes. Otherwise a difference between heads makes the payloads NaN, and the next exchange raises.

    Raises:
        RankError: naming the rank and the difference.
    """
    talk, said = talk_of(group), list(said)
    talk.over += 1
    _settle(talk, group)
    talk.met += 1
    words = torch.zeros(0, dtype=torch.int64, device=device) if payload is None else _words(payload)
    head = _head(kind, talk.met if call is None else call, len(words), size, device)
    for place, one in enumerate(said, CHECKS):
        head[place] = one.value
    if rows is not None:
        head[ROWS:CHECKS] = rows
    other = len(words) > talk.room or (kind == "forward" and 4 * len(words) < talk.room)  # each step has small ones too
    frame = torch.cat((head, words if len(words) <= talk.room else words[:0]))
    frame = torch.cat((frame, frame.new_zeros(HEAD + talk.room - len(frame))))
    found = gather(frame, group)
    heads, sent = found[:, :HEAD], found[:, HEAD : HEAD + len(words)]
    looked = wait or other or _at_once(device)
    if looked:
        judge(heads.tolist(), said, group)
    if kind == "layout":  # is followed by another exchange of the same call
        talk.over -= 1
    if len(words) > talk.room:
        sent = gather(words, group)
    talk.room = len(words) if other else talk.room
    if payload is None:
        return heads, None
    sent = sent.contiguous().view(payload.dtype)[:, : payload.numel()]
    return heads, sent if looked else _later(talk, heads, sent, said)


def _at_once(device: torch.device) -> bool:
    """Whether the heads can be checked without synchronising with a device."""
    return device.type == "cpu"


def _words(payload: Tensor) -> Tensor:
    """A payload of floating-point numbers viewed as int64, with a 0 appended if necessary."""
    odd = payload.numel() * payload.element_size() % 8
    return (torch.cat((payload, payload.new_zeros(1))) if odd else payload).view(torch.int64)


def _head(kind: str, call: int, length: int, size: int, device: torch.device) -> Tensor:
    head = torch.zeros(HEAD, dtype=torch.int64, device="cpu")
    head[KIND], head[CALL], head[LENGTH], head[SIZE] = KINDS.index(kind), call, length, size
    return head if device.type == "cpu" else head.pin_memory().to(device, non_blocking=True)


def _later(talk: _Talk, heads: Tensor, sent: Tensor, said: list[Check]) -> Tensor:
    """The payloads, or NaN if the heads differ; the heads are copied to the host asynchronously and checked later."""
    same = torch.cat((heads[:, :TEXT], heads[:, CHECKS:]), 1)
    agreed = (same == same[:1]).all() & (heads[:, FAILED] == 0).all()
    if heads.device.type == "cpu":
        talk.pending = (None, heads.clone(), said)
    else:
        host = torch.empty(heads.shape, dtype=heads.dtype, pin_memory=True)
        host.copy_(heads, non_blocking=True)
        event = torch.Event(device=heads.device)
        event.record()
        talk.pending = (event, host, said)
    return torch.where(agreed, sent, torch.nan)


def _settle(talk: _Talk, group: Any) -> None:
    """Check the heads of the previous exchange, unless they were checked at once."""
    if talk.pending is not None:
        (event, heads, said), talk.pending = talk.pending, None
        if event is not None:
            event.synchronize()
        judge(heads.tolist(), said, group)


def judge(heads: list[list[int]], said: list[Check], group: Any) -> None:
    """Raise on every rank the same error: that of one rank, different calls, or different settings."""
    failed = [f"rank {rank}: {_text(head)}" for rank, head in enumerate(heads) if head[FAILED]]
    if failed:
        raise RankError("; ".join(failed))
    calls = [(KINDS[head[KIND]], head[CALL]) for head in heads]
    if len(set(calls)) > 1:
        talk_of(group).epoch += 1
        named = ", ".join(f"rank {rank} is at {kind} of call {call}" for rank, (kind, call) in enumerate(calls))
        raise RankError(f"every rank must make the same calls, backward included: {named}")
    for place, one in enumerate(said, CHECKS):
        for rank, head in enumerate(heads):
            if head[place] != heads[0][place]:
                raise RankError(
                    f"{one.name} must be the same on every rank, but rank {rank}'s is not rank 0's; on rank "
                    f"{dist.get_rank(group)} it is {one.here}{_ADVICE.get(one.name, '')}"
                )
    lengths = [head[LENGTH] for head in heads]
    if len(set(lengths)) > 1:
        raise RankError(f"every rank must send as much as the others, got {lengths} numbers")
    _judge_rows(heads)


def _judge_rows(heads: list[list[int]]) -> None:
    """Raise if two ranks have the same first rows."""
    seen: dict[tuple[int, ...], int] = {}
    rows = {rank: head[ROWS:CHECKS] for rank, head in enumerate(heads) if head[SIZE]}
    least = min([[*each, 0].index(0) for each in rows.values()] or [0])  # torch 2.11 compiles no min with a default
    for rank, each in rows.items():
        first = tuple(each[:least])
        if least and first in seen:
            raise RankError(
                f"linear_weight must be other classes' rows on each rank, but rank {rank} holds those of rank "
                f"{seen[first]}: draw them anew (reset_parameters), load each rank's own rows, and keep plain shards "
                "out of DistributedDataParallel, fully_shard and FSDP over the same ranks"
            )
        seen[first] = rank


def _text(head: list[int]) -> str:
    return torch.tensor(head[TEXT:SIZE]).numpy().tobytes().rstrip(b"\0").decode(errors="ignore")


def word(*values: object) -> int:
    """A hash of settings that is the same in every process."""
    return zlib.crc32(repr(values).encode())


def check(name: str, value: Any) -> Check:
    """The check that a value is the same on every rank: tensors to the bit, other values by their repr."""
    if not isinstance(value, Tensor):
        return Check(name, word(value), repr(value))
    here = f"{value.dtype} {list(value.shape)}"
    return Check(name, checksum(value) + word(here), here)


def _sums(rows: Tensor) -> Tensor:
    """A checksum [N] of each row [N, ...]: its bits as integers, summed with a factor for each place; no host sync."""
    rows, width = rows.detach().flatten(1).contiguous(), rows.element_size()
    if rows.shape[1] * width % 8 == 0:
        words = rows.view(torch.int64)
    else:
        words = rows.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[width]).to(torch.int64)
    return (words * (2 * torch.arange(words.shape[1], device=words.device) + 1)).sum(1)


def checksum(value: Tensor) -> Tensor:
    """A checksum of a tensor's bits, which depends on the order of its rows."""
    sums = _sums(value.reshape(-1, 1) if value.ndim < 2 or value.shape[0] == 1 else value)
    return mixed(sums + SPLITMIX_STEP * torch.arange(1, len(sums) + 1, device=sums.device)).sum()


def first_rows(weight: Tensor) -> Tensor:
    """Checksums [4] of the first four rows; 0 for a row that is absent, or may be equal on two ranks by chance.

    The latter are rows of fewer than 8 bytes, rows whose numbers are all equal, and rows that are all the same.
    """
    rows = weight[: CHECKS - ROWS].detach()
    found = rows.new_zeros(CHECKS - ROWS, dtype=torch.int64)
    if rows.shape[1] * rows.element_size() < 8:
        return found
    sums = mixed(_sums(rows))
    alike = (rows == rows[:, :1]).all(1) | ((sums == sums[:1]).all() & (len(sums) > 1))
    found[: len(sums)] = torch.where(alike, 0, sums)
    return found
