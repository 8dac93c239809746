"""The machine code of a recorded launch, compiled for any GPU without one, and what is in it.

It is specialised as Triton does at run time: 16-byte pointers and sizes that 16 divides are marked, a 1 is a constant.
"""

from __future__ import annotations

import functools
import importlib
import io
import re
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One kernel as one launch specialises it, for one compute capability; plain values that another process reads."""

    target: int
    module: str
    kernel: str
    signature: dict[str, str]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]
    title: str  # a call that launches it


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a job; `problem` is the error where it made nothing."""

    kernel: str
    target: int
    title: str
    registers: int = 0
    spilled: int = 0  # bytes a thread that did not fit into the registers
    shared: int = 0
    reads: tuple[tuple[int, int], ...] = ()  # (bits, how many instructions), widest first
    writes: tuple[tuple[int, int], ...] = ()
    products: str = ""
    warnings: tuple[str, ...] = ()  # of the assembler: matrix instructions that it makes wait for each other, C75xx
    problem: str = ""


def jobs(calls: Iterable[Any], target: int) -> list[Job]:
    """The distinct specialisations of what the calls launch."""
    launched = ((launch, call.title) for call in calls for launch in call.launches if 0 not in launch.grid)
    found: dict[str, Job] = {}
    for launch, title in launched:
        job = specialised(launch, target, title)
        found.setdefault(repr(job[:-1]), job)
    return list(found.values())


def specialised(launch: Any, target: int, title: str) -> Job:
    """The job of a recorded launch: by Triton's own function that looks at the arguments at run time."""
    kernel, chosen = launch.kernel, {"num_warps": launch.warps, "num_stages": launch.stages}
    backend, binder = binding(kernel, target)
    bound, seen, _ = binder(**launch.arguments, **chosen)
    constants = [value for value, (kind, *_) in zip(bound.values(), seen) if kind == "constexpr"]
    key = repr((id(kernel), target, chosen, seen, constants))  # what follows depends on nothing else
    if key not in _packed:
        _packed[key] = kernel._pack_args(backend, chosen, bound, seen, chosen)
    _, signature, constants, attributes = _packed[key]
    return Job(target, kernel.fn.__module__, kernel.fn.__name__, signature, constants, attributes, chosen, title)


_packed: dict[str, Any] = {}


@functools.cache
def binding(kernel: Any, target: int) -> tuple[Any, Any]:
    """Triton's part for a target, and its function that looks at a kernel's arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", target, 32))
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def compiled(job: Job) -> Compiled:
    """Compile, and read the machine code's resources and the instructions that matter."""
    try:
        made = built(job)
    except Exception as error:
        return Compiled(job.kernel, job.target, job.title, problem=f"{type(error).__name__}: {error}")
    return read(job, made)


def built(job: Job) -> Any:
    """What Triton's compiler makes of a job: its `asm` holds the PTX and the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(job.module), job.kernel)
    source = ASTSource(kernel, job.signature, job.constants, job.attributes)
    return triton.compile(source, target=GPUTarget("cuda", job.target, 32), options=job.options)


def read(job: Job, made: Any) -> Compiled:
    """What is in the machine code of a job."""
    text = made.asm["ptx"]
    registers, stack = resources(made.asm["cubin"])
    used = " ".join(name for name, instruction in PRODUCTS.items() if instruction in text)
    spilled, warnings = penalties(assembled(text, job)) if stack or "wgmma" in used else (0, ())
    sizes = made.metadata.shared, widths(text, READS), widths(text, WRITES)
    return Compiled(job.kernel, job.target, job.title, registers, spilled, *sizes, used, warnings)


# Instructions of the matrix units: of sm_90, of sm_100, and of all.
PRODUCTS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
READS = r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)\s|cp\.async\.c[ag]\.shared\.global\b.*?\], 0x(\w+)"
WRITES = r"\bst\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)()\s"


def widths(text: str, pattern: str) -> tuple[tuple[int, int], ...]:
    """(bits, how many) of the accesses to global memory in a kernel's PTX, widest first."""
    groups = re.findall(pattern, text)
    found = [
        8 * int(copied, 16) if copied else int(count or 1) * int(bits)
        for count, bits, copied in groups
        if bits or copied
    ]
    return tuple((bits, found.count(bits)) for bits in sorted(set(found), reverse=True))


def tool(name: str) -> Path:
    """A program of the vendor's that Triton carries."""
    import triton

    return Path(triton.__file__ or "").parent / "backends" / "nvidia" / "bin" / name


def assembled(text: str, job: Job) -> str:
    """What the assembler says of a kernel's PTX, run once more by Triton's own stage, with the options that it adds."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget, Language
    from triton.compiler import make_backend

    backend, stages = make_backend(GPUTarget("cuda", job.target, 32)), {}
    backend.add_stages(stages, backend.parse_options(dict(job.options)), Language.TRITON)
    with knobs.nvidia.scope(), redirect_stdout(io.StringIO()) as said:
        knobs.nvidia.dump_ptxas_log = True
        stages["cubin"](text, {})
    return said.getvalue()


def penalties(said: str) -> tuple[int, tuple[str, ...]]:
    """(bytes a thread that are stored to memory for want of registers, the warnings C75xx) in the assembler's words.

    A stack may hold arrays as well, so its size does not say what is spilled.
    """
    warnings = re.findall(r"\((C75\d\d)\)(.*?)(?: in the function .*)?$", said, flags=re.MULTILINE)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    return spilled, tuple(dict.fromkeys(f"{code}{words}".strip() for code, words in warnings))


def resources(binary: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a kernel, as the vendor's tool reads them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()  # type: ignore[union-attr]
    return int(registers), int(stack)
