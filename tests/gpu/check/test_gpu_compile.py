"""Every GPU kernel compiles, without a GPU: nothing spills, reads are wide, and products use the matrix units, whose
instructions do not wait for each other.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from benchmarks.gpu import code, traffic
from benchmarks.gpu import compile as gpu_compile

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "lt_kernels" / "triton"


def defined() -> set[str]:
    """The kernels of the package."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in KERNELS.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in nodes if node.name.endswith("_kernel")}


def found(folder: Path, cache: Path) -> list[dict[str, Any]]:
    """Some variants of each kernel, compiled by another process: this one may have imported Triton's interpreter.

    Triton keeps what it compiled under a hash of the kernel's source and of its own version.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    options = ["--few", "--workers", "2", "--json", str(folder / "found")]
    command = [sys.executable, "-m", "benchmarks.gpu.compile", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (folder / "found").exists(), done.stderr
    return json.loads((folder / "found").read_text(encoding="utf-8"))


LOGITS = ("long_statistics_kernel", "long_gradient_kernel", "columns_forward_kernel", "columns_backward_kernel")
PRODUCTS = ("statistics_kernel", "slab_gradient_kernel", "screen_kernel")


@pytest.mark.slow
def test_machine_code(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """One test, so that what takes minutes is done once however many processes share the tests."""
    kept = getattr(pytestconfig, "cache", None)
    every = found(tmp_path, tmp_path / "cache" if kept is None else Path(kept.mkdir("triton")))
    named = {f"{one['kernel']} for sm_{one['target']} ({one['title']})": one for one in every}
    assert {name: one["problem"] for name, one in named.items() if one["problem"]} == {}
    for target in gpu_compile.TARGETS:
        assert {one["kernel"] for one in every if one["target"] == target} == defined()
    most = (
        68 if triton.__version__.startswith("3.6.") else 0
    )  # bytes: 3.6 spills in one kernel, as docs/kernels/gpu.md tells
    assert {name: one["spilled"] for name, one in named.items() if one["spilled"] > most} == {}
    assert {name: one["warnings"] for name, one in named.items() if one["warnings"]} == {}
    for target, goal in itertools.product(gpu_compile.TARGETS, gpu_compile.GOALS):
        assert any(f"sm_{target} " in name and goal in name for name in named), f"{goal} for sm_{target}"
    assert {name: one["reads"] for name, one in large(named).items() if one["reads"][0][0] < wide(name)} == {}
    written = {name: one["writes"] for name, one in large(named).items() if one["kernel"] in (LOGITS[1], LOGITS[3])}
    assert {name: widths for name, widths in written.items() if widths[0][0] < wide(name)} == {}
    products = {name: one for name, one in named.items() if one["kernel"] in PRODUCTS}
    assert [name for name, one in products.items() if not one["products"]] == []
    assert {one["products"] for one in products.values() if one["target"] == 90} == {"wgmma"}


def large(named: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The kernels that read large logits, also such ("odd") as start anywhere in 16 bytes."""
    logits = {name: one for name, one in named.items() if one["kernel"] in LOGITS}
    some = {name: one for name, one in logits.items() if re.search("vocab|odd", one["title"])}
    assert {one["target"] for one in some.values()} == set(gpu_compile.TARGETS)
    assert {one["kernel"] for one in some.values() if "odd" in one["title"]} == set(LOGITS)
    return some


def wide(name: str) -> int:
    """The bits that a thread reads at once: 16 bytes, or 4 logits where they start anywhere and have a table by class.

    The table's numbers are then read one by one, and 8 logits would spread those of a warp over 1 KiB
    (`rows_tiles._group`).
    """
    return 64 if "odd" in name and "16 offset" in name else 128


def test_the_document_has_every_kernel() -> None:
    text = (ROOT / "docs" / "kernels" / "gpu.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- table: gpu-compile -->\n(.*?)<!-- end of table", text, flags=re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == defined(), "make gpu-compile ARGS=--write"


def test_widths() -> None:
    text = """
        ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        @%p1 ld.global.L1::evict_first.L2::cache_hint.v2.b64 { %rd2, %rd3 }, [ %rd1 + 0 ], %rd4;
        ld.global.b16 { %rs1 }, [ %rd5 + 0 ];
        cp.async.cg.shared.global [ %r5 + 0 ], [ %rd6 + 0 ], 0x10, %r6;
        ld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r7 ];
        st.global.v2.b32 [ %rd7 + 0 ], { %r1, %r2 };
    """
    assert code.widths(text, code.READS) == ((128, 3), (16, 1))
    assert code.widths(text, code.WRITES) == ((64, 1),)


SAID = """
ptxas info    : 0 bytes gmem
ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions reading accumulator registers of  a wgmma between start and end of the pipeline stage in the function 'a'
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for a
    96 bytes stack frame, 24 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 96 bytes cumulative stack size
""".replace("\\\n", "")


def test_what_the_assembler_says() -> None:
    spilled, (warning,) = code.penalties(SAID)
    assert spilled == 24
    assert warning.startswith("C7514 Potential Performance Loss: wgmma.mma_async instructions are serialized due to")
    assert warning.endswith("end of the pipeline stage")
    assert code.penalties("ptxas info    : 0 bytes gmem\n    0 bytes stack frame, 0 bytes spill stores") == (0, ())


def test_the_assembler_is_heard() -> None:
    """Matrix instructions whose sums are read between them: what is assembled is what a compiler might have made."""
    ptx = """
        .version 8.0
        .target sm_90a
        .address_size 64
        .visible .entry a(.param .u64 out) {
            .reg .f32 %f<5>; .reg .b64 %d<3>; .reg .b64 %p;
            mov.b64 %d1, 0; mov.b64 %d2, 0; mov.f32 %f1, 0f00000000; mov.f32 %f2, 0f00000000;
            mov.f32 %f3, 0f00000000; mov.f32 %f4, 0f00000000;
            wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %d1, %d2, 1, 1, 1, 0, 0;
            add.f32 %f1, %f1, %f2;
            wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %d1, %d2, 1, 1, 1, 0, 0;
            wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
            ld.param.u64 %p, [out]; st.global.f32 [%p], %f1;
            ret;
        }
    """
    job = code.Job(90, "", "a", {}, {}, {}, {"num_warps": 4, "num_stages": 2}, "")
    (warning, *_) = code.penalties(code.assembled(ptx, job))[1]
    assert warning.startswith("C75")


def test_worst_variant_of_each_target() -> None:
    make = code.Compiled
    variants = [
        make("a_kernel", 80, "", 40, 0, 2048, ((128, 1),), ((32, 2),)),
        make("a_kernel", 80, "", 32, 8, 0, ((64, 1),)),
    ]
    variants += [make("a_kernel", 90, "", 64, 0, 1, ((128, 4),), ((32, 1),), "wgmma", ("C7514 serialized",))]
    cells = ["`a_kernel`", "2", "40 / 64", "8 / 0", "- / C7514", "2 / 1", "128", "32", "- / wgmma"]
    assert gpu_compile.line(variants) == cells
    said = ["a_kernel for sm_80 (): 8 bytes spilled", "a_kernel for sm_90 (): C7514 serialized"]
    assert gpu_compile.complaints(variants) == said


def test_versions_are_compared_by_what_is_wrong() -> None:
    make = code.Compiled
    found = [make("a_kernel", 90, "", 40), make("b_kernel", 90, "", 40, 60), make("c_kernel", 80, "", problem="x")]
    found += [make("a_kernel", 90, "", 40, 8, warnings=("C7510 serialized",))]
    cells = ["3.8.0", "4", "1", "2", "60", "1", "`a_kernel`, `b_kernel`, `c_kernel`"]
    assert gpu_compile.version_line("3.8.0", found) == cells
    assert gpu_compile.version_line("3.7.1", found[:1])[-1] == "-"


def test_bytes_of_what_a_launch_is_given() -> None:
    import torch

    wide = torch.empty(4, 6, device="meta")
    assert traffic.size(wide) == 96
    assert traffic.size(wide[:1].expand(4, 6)) == 24
    with traffic.Library() as library:
        torch.mm(wide, wide.T, out=torch.empty(4, 4, device="meta"))
        wide.T.contiguous()
    assert library.flops == 2 * 4 * 6 * 4
    assert library.launches == 2
