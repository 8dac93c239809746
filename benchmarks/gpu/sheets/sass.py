"""What a kernel's machine code does for each element: the instructions of the cheapest way round its hot loops.

A hot loop is one in which exponentials are computed, one for each element (`MUFU.EX2`); in a kernel without any, one
that stores. Blocks that few turns reach, as for a target or the end of a row, are avoided by the cheapest way.
"""

from __future__ import annotations

import functools
import heapq
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.gpu.code import tool

EXPONENTIAL, SPECIAL = r"\bMUFU\.EX2", r"\bMUFU"
MATRIX = r"\b[HIQ]GMMA|\b[HIQ]MMA"
STORE = r"\bSTG"
GLOBAL = r"\b(?:LDG|STG|LDGSTS)\b[\w.]*"
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}  # bytes by the suffix; 4 without one


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    label: str
    instructions: list[str] = field(default_factory=list)
    next: list[int] = field(default_factory=list)

    def has(self, pattern: str) -> int:
        """How many instructions match."""
        return sum(bool(re.search(pattern, one)) for one in self.instructions)


class Loop(NamedTuple):
    """What one turn of a hot loop costs a warp, and the elements of a thread that it serves."""

    elements: float
    instructions: int
    special: int
    bytes: int  # of a thread to and from the L2 cache or beyond


@functools.lru_cache(64)  # a call may launch the same kernel a hundred times
def disassembled(binary: bytes) -> str:
    """A cubin's listing by the vendor's tool."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run(
            [tool("nvdisasm"), "-c", "-ndf", file.name], capture_output=True, text=True, check=True
        ).stdout


@functools.lru_cache(64)
def blocks(text: str) -> list[Block]:
    """The basic blocks of a listing, each with the indices of those that may follow it."""
    found = [Block("")]
    for line in text.splitlines():
        label = re.match(r"\s*(\.L_\w+):", line)
        code = re.match(r"\s*/\*[0-9a-f]{4,5}\*/\s+(.*?);", line)
        if label:
            found.append(Block(label[1]))
        elif code:
            found[-1].instructions.append(code[1].strip())
            if re.search(r"\bBRA\b|\bEXIT\b", code[1]):
                found.append(Block(""))
    found = [block for block in found if block.instructions or block.label]
    places = {block.label: index for index, block in enumerate(found) if block.label}
    for index, block in enumerate(found):
        block.next = _next(block, index, len(found), places)
    return found


def _next(block: Block, index: int, number: int, places: dict[str, int]) -> list[int]:
    last = block.instructions[-1] if block.instructions else ""
    target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", last)
    ends = re.match(r"(EXIT|BRA(\.U)? `)", last)  # without a predicate
    after = [] if ends or index + 1 == number else [index + 1]
    return after + ([places[target[1]]] if target and target[1] in places else [])


def way(code: Sequence[Block], begin: int, end: int | None = None) -> list[int]:
    """The blocks after `begin` on the way with the fewest instructions to `end`, or to where the kernel ends."""
    queue: list[tuple[int, list[int]]] = [(0, [])]
    seen: set[int] = set()
    while queue:
        cost, path = heapq.heappop(queue)
        here = path[-1] if path else begin
        if path and (here == end or (end is None and not code[here].next)):
            return path
        if here in seen:
            continue
        seen.add(here)
        for after in code[here].next:
            heapq.heappush(queue, (cost + len(code[after].instructions), [*path, after]))
    return []


def loops(code: Sequence[Block], marker: str) -> list[list[int]]:
    """The cheapest way round through each block with the marker, those with the most markers first; none shares such a
    block with another.
    """
    found: list[list[int]] = []
    marked = sorted(
        (index for index, block in enumerate(code) if block.has(marker)), key=lambda i: -code[i].has(marker)
    )
    for index in marked:
        path = way(code, index, index)
        if path and not any(index in other for other in found):
            found.append(path)
    return found


def turn(code: Sequence[Block], path: Iterable[int], elements: float = 0) -> Loop:
    """The cost of a way round. One exponential an element, and a few for all: the elements are a power of two."""
    some = [code[index] for index in path]
    exponentials = sum(block.has(EXPONENTIAL) for block in some) or 1
    number = elements or 1 << (exponentials.bit_length() - 1)
    moved = sum(width(one) for block in some for one in block.instructions)
    return Loop(number, sum(len(b.instructions) for b in some), sum(b.has(SPECIAL) for b in some), moved)


def width(instruction: str) -> int:
    """The bytes that a thread reads or writes in global memory by an instruction."""
    found = re.search(GLOBAL, instruction)
    if found is None:
        return 0
    return next((size for suffix, size in WIDTHS.items() if suffix in found[0].split(".")), 4)


def hot(binary: bytes, each: float) -> list[Loop]:
    """The hot loops of a kernel that multiplies no tiles: those that serve as many elements a turn as any does.

    Without exponentials the elements are known by the bytes that a turn moves, `each` for an element.
    """
    code = blocks(disassembled(binary))
    found = [turn(code, path) for path in loops(code, EXPONENTIAL)]
    if found:
        most = max(loop.elements for loop in found)
        return [loop for loop in found if loop.elements == most]
    path = max(loops(code, STORE), key=len, default=[0, *way(code, 0)])
    loop = turn(code, path)
    return [loop._replace(elements=max(1.0, loop.bytes / each))]


def reading(binary: bytes, elements: int) -> list[Loop]:
    """The loop that reads the most of a kernel, each of whose threads takes so many elements a turn."""
    code = blocks(disassembled(binary))
    found = [turn(code, path, elements) for path in loops(code, GLOBAL)]
    return [max(found, key=lambda loop: loop.bytes / loop.instructions)]


def tile(binary: bytes) -> tuple[Loop, Loop]:
    """(a step of the product, all that follows it for a tile) of a kernel that multiplies tiles, for each warp."""
    code = blocks(disassembled(binary))
    steps = loops(code, MATRIX)
    step = min(steps, key=lambda path: sum(len(code[index].instructions) for index in path)) if steps else []
    marked = [index for index, block in enumerate(code) if block.has(EXPONENTIAL) or block.has(STORE)]
    index = max(marked, key=lambda index: (code[index].has(EXPONENTIAL), code[index].has(STORE)))
    once = way(code, index, index) or [*way(code, step[-1] if step else 0, index), *way(code, index)]
    return turn(code, step), turn(code, [index for index in once if index not in step])
