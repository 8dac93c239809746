"""Every GPU kernel compiles, ahead of time and without a GPU: nothing spills, reads are wide, products use the units."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import gpu_code, gpu_compile, gpu_traffic

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "lt_kernels" / "triton"
FOUND: list[dict[str, Any]] = []


def defined() -> set[str]:
    """The kernels of the package."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in KERNELS.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in nodes if node.name.endswith("_kernel")}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Some variants of each kernel, compiled by another process: this one may have imported Triton's interpreter."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_compile",
        "--few",
        "--workers",
        "2",
        "--json",
        str(folder / "found"),
    ]
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (folder / "found").exists(), done.stderr
    return json.loads((folder / "found").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target(found: list[dict[str, Any]]) -> None:
    assert [f"{one['kernel']} {one['target']}: {one['problem']}" for one in found if one["problem"]] == []
    for target in gpu_compile.TARGETS:
        assert {one["kernel"] for one in found if one["target"] == target} == defined()


@pytest.mark.slow
def test_nothing_spills(found: list[dict[str, Any]]) -> None:
    spilled = {f"{one['kernel']} {one['target']} ({one['title']})": one["spilled"] for one in found}
    assert {key: value for key, value in spilled.items() if value} == {}


@pytest.mark.slow
@pytest.mark.parametrize("target", gpu_compile.TARGETS)
@pytest.mark.parametrize("stem", ["long_statistics", "long_gradient", "columns_forward", "columns_backward", "tangent"])
def test_logits_are_read_16_bytes_at_a_time(stem: str, target: int, found: list[dict[str, Any]]) -> None:
    widest = [one["reads"][0][0] for one in found if one["kernel"] == f"{stem}_kernel" and one["target"] == target]
    assert max(widest) == 128


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["statistics_kernel", "slab_gradient_kernel", "screen_kernel"])
def test_products_are_made_by_the_matrix_units(kernel: str, found: list[dict[str, Any]]) -> None:
    for one in found:
        if one["kernel"] == kernel:
            assert one["products"] != ""
            assert one["target"] != 90 or one["products"] == "wgmma"


def test_the_document_has_every_kernel() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
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
    assert gpu_code.widths(text, gpu_code.READS) == ((128, 3), (16, 1))
    assert gpu_code.widths(text, gpu_code.WRITES) == ((64, 1),)


def test_worst_variant_of_each_target() -> None:
    make = gpu_code.Compiled
    variants = [
        make("a_kernel", 80, "", 40, 0, 2048, ((128, 1),), ((32, 2),)),
        make("a_kernel", 80, "", 32, 8, 0, ((64, 1),)),
    ]
    variants += [make("a_kernel", 90, "", 64, 0, 1, ((128, 4),), ((32, 1),), "wgmma")]
    cells = ["`a_kernel`", "2", "40 / 64", "8 / 0", "2 / 1", "128", "32", "- / wgmma"]
    assert gpu_compile.line(variants) == cells
    assert gpu_compile.complaints(variants) == ["a_kernel for sm_80 (): 8 bytes spilled"]


def test_bytes_of_what_a_launch_is_given() -> None:
    import torch

    wide = torch.empty(4, 6, device="meta")
    assert gpu_traffic.size(wide) == 96
    assert gpu_traffic.size(wide[:1].expand(4, 6)) == 24
    with gpu_traffic.Library() as library:
        torch.mm(wide, wide.T, out=torch.empty(4, 4, device="meta"))
        wide.T.contiguous()
    assert library.flops == 2 * 4 * 6 * 4
    assert library.launches == 2
