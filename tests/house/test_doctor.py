"""lt-kernels doctor, and the building of the extension that it reports on."""

from __future__ import annotations

import re

import pytest
import torch
from builds.wheels import has_compiler

from lt_kernels import cli, doctor, ops
from lt_kernels.ops.products import choice

ROOMS = ("rows", "margins", "linear", "gram", "columns")


def table_of(report: str) -> list[list[str]]:
    """The lines below the heading "operator  device  kernels ...", split at two spaces or more."""
    lines = report.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("operator"))
    return [re.split(r"\s{2,}", line) for line in lines[start + 1 :] if line]


def test_report_names_versions_and_every_room_on_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed == doctor.report() + "\n"
    for fact in ("Python", torch.__version__, "memory budget", "256 MiB", "C++ extension", "GPU", "CPU", "screened"):
        assert fact in printed
    assert f"products       large float32 ones on the CPU by {'oneDNN' if choice()[0] else 'torch.mm'}" in printed
    assert {(line[0], line[1]) for line in table_of(printed)} >= {(room, d) for room in ROOMS for d in ("cpu", "cuda")}


def test_a_reason_stands_wherever_the_reference_serves() -> None:
    for operator, device, kernels, reason in ops.kernels_status():
        if device == "cuda" and not torch.cuda.is_available():
            assert "no CUDA device" in reason
        else:
            assert bool(reason) == kernels.startswith("reference"), (operator, device, kernels, reason)


def test_report_follows_what_operators_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "extension_status", lambda: (False, "", "the moon is full"))
    monkeypatch.setattr(ops, "kernels_status", lambda: [("rows", "cpu", "reference", "the moon is full")])
    assert "not loaded: the moon is full" in doctor.report()
    assert table_of(doctor.report()) == [["rows", "cpu", "reference", "the moon is full"]]
    monkeypatch.setattr(ops, "extension_status", lambda: (True, "avx2", ""))
    assert "loaded, serving with avx2" in doctor.report()


def test_memory_budget_in_the_report() -> None:
    with ops.memory_budget(64 * 2**20):
        assert "64 MiB" in doctor.report()


def test_unknown_argument_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main(["--nonsense"])
    assert "--nonsense" in capsys.readouterr().err


def test_machine_names_device_commit_and_date() -> None:
    facts = doctor.machine()
    assert facts["torch"] == torch.__version__
    assert re.fullmatch(r"unknown|[0-9a-f]{7,}\+?", str(facts["commit"]))
    assert re.fullmatch(r"unknown\+?|[0-9a-f]{12,}\+?", doctor.commit(digits=12))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(facts["date"]))


def test_the_extension_is_built_where_a_compiler_is() -> None:
    loaded, instruction_set, reason = ops.extension_status()
    if not loaded:
        assert not has_compiler(), f"a compiler is here, so install again: {reason}"
        assert reason
    else:
        assert instruction_set in ("generic", "avx2", "avx512")
