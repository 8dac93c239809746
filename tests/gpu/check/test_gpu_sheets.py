"""The predictions without a GPU: machine code is counted along the right way, and times are those of the units."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu.sheets import model, sass, trace
from benchmarks.gpu.sheets.__main__ import Sheet, tables
from benchmarks.gpu.sheets.goals import GOALS, Pairs, _copied
from benchmarks.gpu.traffic import Operation

# A loop of two ways: a rare block that few turns reach, and another without; then a second loop, and the end.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_9) ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/              @!P1 BRA `(.L_x_1) ;
        /*0040*/                   FADD R5, R5, R6 ;
        /*0050*/                   FADD R5, R5, R6 ;
.L_x_1:
        /*0060*/                   MUFU.EX2 R7, R4 ;
        /*0070*/                   MUFU.EX2 R8, R5 ;
        /*0080*/                   MUFU.EX2 R9, R5 ;
        /*0090*/                   STG.E.U16 desc[UR4][R2.64], R7 ;
        /*00a0*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*00b0*/                   MUFU.EX2 R7, R4 ;
        /*00c0*/                   MUFU.EX2 R7, R4 ;
        /*00d0*/              @!P3 BRA `(.L_x_2) ;
        /*00e0*/                   MUFU.EX2 R7, R4 ;
.L_x_9:
        /*00f0*/                   EXIT ;
"""


def test_the_cheapest_way_round_a_loop_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "disassembled", lambda _: LISTING)
    first, second = sass.hot(b"", 1.0)
    assert first == sass.Loop(elements=2, instructions=7, special=3, bytes=18)
    assert second == sass.Loop(elements=2, instructions=3, special=2, bytes=0)


def test_a_kernel_without_loops_is_counted_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in LISTING.splitlines() if "EX2" not in line and "P2 BRA" not in line and "P3" not in line]
    monkeypatch.setattr(sass, "disassembled", lambda _: "\n".join(lines))
    (loop,) = sass.hot(b"", 4.0)
    assert loop == sass.Loop(elements=1.0, instructions=3, special=0, bytes=0)


def test_widths_of_instructions() -> None:
    assert [sass.width(text) for text in ("LDG.E R2, a", "@P0 LDG.E.64.CONSTANT R2, a", "LDS.128 R2, a")] == [4, 8, 0]
    assert sass.width("LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]") == 16


FEW = model.Resources(registers=128, shared=64_000, warps=4)


def test_programs_of_a_multiprocessor() -> None:
    assert FEW.resident() == 3  # by their shared memory
    assert FEW._replace(shared=0).resident() == 4  # by their registers
    assert FEW._replace(registers=255, warps=8).resident() == 1


def test_a_copy_takes_the_time_of_its_bytes() -> None:
    loop = sass.Loop(elements=8, instructions=16, special=0, bytes=32)
    times = model.streamed(4.3e9, 1.075e9, [loop], 10_000, FEW)
    assert times.memory == pytest.approx(1e-3)
    assert times.total == pytest.approx(1e-3 + model.LAUNCH)
    assert times.cache == pytest.approx(4.3e9 / model.CACHE)
    assert times.issue == pytest.approx(1.075e9 * 2 / (4 * 32 * 132 * model.CLOCK))
    one = model.streamed(4.3e9, 1.075e9, [loop], 1, FEW)
    assert one.memory == pytest.approx(4.3e9 / model.PORT)


def test_a_second_pass_beyond_the_cache_reads_memory() -> None:
    loop = sass.Loop(elements=8, instructions=16, special=8, bytes=16)
    near = model.streamed(2e9, 5e8, [loop, loop], 10_000, FEW._replace(registers=255, warps=16))
    far = model.streamed(2e9, 5e8, [loop, loop], 500, FEW)
    assert far.memory == pytest.approx(near.memory * 1.5)


def test_tiles_overlap_where_two_programs_share_a_multiprocessor() -> None:
    tiles = model.Tiles(number=132 * 10, rows=128, columns=128, depth=1_024, step=64, itemsize=2)
    step, after = sass.Loop(1, 100, 0, 0), sass.Loop(128, 5_000, 128, 0)
    shared = model.tiled(0, tiles, step, after, FEW)
    alone = model.tiled(0, tiles, step, after, FEW._replace(registers=255, warps=8))
    serial = model.tiled(0, tiles, step, after, FEW._replace(serial=True))
    product = 10 * 2 * 128 * 128 * 1_024 / (model.MATRIX / 132)
    assert shared.matrix == alone.matrix == pytest.approx(product)
    assert alone.total == pytest.approx(product + 10 * 5_000 * 8 / 4 / model.CLOCK + model.LAUNCH)
    assert shared.total < alone.total
    assert serial.matrix == pytest.approx(product / model.SERIAL)


def test_a_product_of_the_library_fills_the_multiprocessors() -> None:
    assert model.filled(8_448, 1_024, 8_192) == 1.0
    assert model.filled(256, 512, 256) < 0.2
    assert model.filled(256, 8_192, 2_048) > 0.5  # by splitting the depth
    product = Operation("mm", 3 * 8_192**2 * 2, (8_192, 8_192, 8_192), torch.bfloat16)
    assert 1.5e-3 < model.library(product).total < 1.8e-3
    assert model.library(Operation("mul", 4_300_000_000)).total == pytest.approx(1e-3 + model.LAUNCH)


def test_goals() -> None:
    assert _copied("vocab-4096") == pytest.approx(0.543, rel=1e-3)
    assert Pairs(each=10).number(8_142) == 40_710
    assert Pairs(share=0.01).number(8_142) == pytest.approx(331_420, rel=1e-3)
    assert len({goal.title for goal in GOALS}) == len(GOALS)


def test_floors() -> None:
    goals = {goal.title: goal for goal in GOALS}
    floors = {name: 1e3 * model.floor(goal.case, goal.pairs.number(goal.case.classes)) for name, goal in goals.items()}
    assert floors["offset CE, vocab-4096"] == pytest.approx(0.9 * goals["offset CE, vocab-4096"].milliseconds)
    assert floors["cosine, faces"] == pytest.approx(15.93, rel=1e-3)
    assert 1.5 < floors["repulsion, lwr-inat, dense"] < 1.8
    assert floors["repulsion, lwr-inat, sparse"] < 0.5


def test_a_sheet_is_the_sum_of_its_kernels() -> None:
    times = model.Times(memory=1e-3, total=2e-3)
    found = Sheet(GOALS[0], [trace.Kernel("a", 1e6, 0, times), trace.Kernel("a", 1e6, 0, times)])
    assert found.milliseconds == pytest.approx(4.0)
    summary, details = tables([found]).values()
    assert "| **no** |" in summary
    assert "| `a` | 2 | 2.0 |" in details
    assert "2,000.0 |" in details
