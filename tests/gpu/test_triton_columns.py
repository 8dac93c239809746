"""The GPU's log-sum-exp down the batch against its definition, on a GPU or by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from device import DEVICE, INTERPRETED, MARKS
from helpers import classes_of, normal
from memory import watched
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels.reference import columns as reference
from lt_kernels.triton import columns
from lt_kernels.triton.launch import recorded

pytestmark = MARKS


# One number, fewer classes than a vector has, one row, whole vectors, odd rows over several blocks.
SHAPES = [(1, 1), (3, 5), (1, 300), (9, 8), (33, 100), (65, 131)]


@pytest.fixture(params=["plain", "wide"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small logits as they are read anyway; and as large ones are: in whole vectors, by parts of the rows."""
    if request.param == "wide":
        monkeypatch.setattr(columns, "LARGE", 0)
        monkeypatch.setattr(columns, "LEAST", 8)
    return request.param


def problem(rows: int, classes: int, dtype: torch.dtype, offset: bool) -> dict[str, Tensor | None]:
    """The arguments of the forward operator."""
    kind = reference.accumulate_type(dtype)
    return {
        "logits": normal(rows, classes, seed=2, spread=3, dtype=dtype).to(DEVICE),
        "target": classes_of(rows, classes, seed=1).to(DEVICE),
        "row_offset": normal(rows, seed=3, spread=2, dtype=kind).to(DEVICE) if offset else None,
    }


def slopes(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """d_lse [C] and d_own [N]."""
    kind = reference.accumulate_type(dtype)
    return normal(classes, seed=4, dtype=kind).to(DEVICE), normal(rows, seed=5, dtype=kind).to(DEVICE)


def check(given: dict[str, Tensor | None]) -> None:
    """Values and gradient against the definition in float64."""
    logits = given["logits"]
    assert logits is not None
    exact = {key: value.double() if value is not None and key != "target" else value for key, value in given.items()}
    lse, own = columns.columns_forward(**given)
    true_lse, true_own = reference.columns_forward(**exact)
    assert lse.dtype == own.dtype == reference.accumulate_type(logits.dtype)
    assert_close(lse, true_lse, name="lse")
    assert torch.equal(own.double(), true_own)
    d_lse, d_own = slopes(*logits.shape, logits.dtype)
    gradient = columns.columns_backward(**given, lse=lse, d_lse=d_lse, d_own=d_own)
    assert gradient.dtype == logits.dtype
    assert gradient.is_contiguous()
    true = reference.columns_backward(**exact, lse=true_lse, d_lse=d_lse.double(), d_own=d_own.double())
    assert_close(gradient, true, logits.dtype, name="gradient")


@pytest.mark.parametrize("offset", [False, True], ids=["no offset", "offset"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_definition(rows: int, classes: int, dtype: torch.dtype, offset: bool, cut: str) -> None:
    check(problem(rows, classes, dtype, offset))


def test_wide_reads_whole_vectors_by_parts(cut: str) -> None:
    """What the parametrisation above means."""
    given = problem(65, 131, torch.bfloat16, False)
    with recorded() as calls:
        columns.columns_forward(**given)
    seen = [(call.arguments["V"], call.arguments["P"]) for call in calls]
    assert seen == ([(8, 8), (1, 1)] if cut == "wide" else [(1, 1)])
    assert calls[0].arguments["lse"].shape[0] == (16 if cut == "wide" else 1)


def test_several_rows_a_thread(monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    """In rows that start at the same place of a vector, as at any place; the last part is smaller."""
    given = problem(150, 21, torch.float32, True)
    if cut == "wide":
        monkeypatch.setattr(columns, "LEAST", 64)
        given["logits"] = normal(150, 23, seed=2, dtype=torch.float32).to(DEVICE)[:, :21]
    with recorded() as calls:
        columns.columns_forward(**given)
    assert calls[0].arguments["U"] > 1
    assert calls[0].arguments["lse"].shape[0] == (8 if cut == "wide" else 1)
    check(given)


@pytest.mark.parametrize("layout", ["columns of a wider matrix", "transposed", "every second row", "one row for all"])
def test_layouts(layout: str, cut: str) -> None:
    wide = normal(40, 64, seed=2, dtype=torch.float32).to(DEVICE)
    places = {"transposed": wide.T, "every second row": wide[::2], "one row for all": wide[:1].expand(40, 64)}
    logits = places.get(layout, wide[:, 7:50])
    check(problem(*logits.shape, torch.float32, False) | {"logits": logits})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities(dtype: torch.dtype, cut: str) -> None:
    """A class that is nowhere has -inf and no gradient; +inf and NaN come through; the other columns are as always."""
    given = problem(40, 20, dtype, False)
    logits = given["logits"]
    logits[:, 3] = -torch.inf
    logits[7, 4], logits[39, 5], logits[0, 6], logits[8:, 7] = torch.inf, torch.nan, -torch.inf, -torch.inf
    logits[3, 8], logits[30, 8] = torch.inf, torch.inf
    lse, _ = columns.columns_forward(**given)
    assert lse[[3, 4, 8]].tolist() == [-torch.inf, torch.inf, torch.inf]
    assert lse[5].isnan()
    calm = [c for c in range(20) if c not in (3, 4, 5, 8)]
    assert_close(lse[calm], logits.double().logsumexp(0)[calm])
    d_lse, d_own = torch.ones(20, device=DEVICE), torch.zeros(40, device=DEVICE)
    gradient = columns.columns_backward(**given, lse=lse, d_lse=d_lse, d_own=d_own)
    assert (gradient[:, 3] == 0).all()
    assert_close(gradient[:, calm], logits.double().softmax(0)[:, calm], dtype)


@pytest.mark.parametrize("shift", [-3e38, -3e4, 500.0, 3e38])
def test_far_from_zero(shift: float, cut: str) -> None:
    """Logits of any size: nothing overflows, and maxima that come late rescale what was summed before."""
    given = problem(40, 20, torch.float32, False)
    given["logits"] += (shift * torch.linspace(0, 1, 40, dtype=torch.float64)).float().to(DEVICE)[:, None]
    exact = given["logits"].double().logsumexp(0)
    eager = given["logits"].logsumexp(0)
    ours = columns.columns_forward(**given)[0]
    assert error(ours, exact) <= error(eager, exact) + TOLERANCE[torch.float32]


def test_rows_that_an_offset_takes_out(cut: str) -> None:
    given = problem(40, 20, torch.float32, True)
    given["row_offset"][5:] = -torch.inf
    check(given)
    given["row_offset"][:] = -torch.inf
    assert (columns.columns_forward(**given)[0] == -torch.inf).all()


@pytest.mark.parametrize("wrong", [-1, -3, -100, 20, 2**31, 2**32 + 2, -(2**63), 2**63 - 1])
def test_targets_that_are_no_class(wrong: int, cut: str) -> None:
    """Nothing is read or written elsewhere, and no entry gets the slope."""
    given = problem(40, 20, torch.float32, False)
    target = given["target"]
    here = target.clone()
    target[[0, 7, 39]] = wrong
    lse, own = columns.columns_forward(**given)
    inside = (target >= 0) & (target < 20)
    assert_close(lse, given["logits"].double().logsumexp(0))
    assert torch.equal(own[inside], given["logits"].gather(1, here[:, None])[:, 0][inside])
    d_lse, d_own = slopes(40, 20, torch.float32)
    gradient = columns.columns_backward(**given, lse=lse, d_lse=d_lse, d_own=d_own)
    only = torch.where(inside, d_own, 0.0)
    true = reference.columns_backward(given["logits"], here, None, lse, d_lse, only)
    assert_close(gradient, true)


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter's memory can be watched")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "classes"), [(9, 8), (3, 5), (40, 131)])
def test_every_logit_is_read_once(rows: int, classes: int, dtype: torch.dtype, cut: str) -> None:
    """Backward writes each once besides; nothing else is touched, even if no target is a class."""
    given = problem(rows, classes, dtype, True)
    given["target"][:] = torch.tensor([-1, classes, 10**12])[torch.arange(rows) % 3]
    d_lse, d_own = slopes(rows, classes, dtype)
    with watched() as launched:
        lse, _ = columns.columns_forward(**given)
        columns.columns_backward(**given, lse=lse, d_lse=d_lse, d_own=d_own)
    first, *more, last = launched
    assert (first.reads["logits"] == 1).all()
    assert all((one.writes[name] == 1).all() for one, name in ((first, "own"), (first, "lse"), (last, "d_logits")))
    assert all((one.reads["logits"] == 1).all() for one in more)  # what the parts left
    assert (last.reads["logits"] == 1).all()


@pytest.mark.parametrize(("rows", "classes"), [(0, 5), (4, 0), (0, 0)])
def test_empty(rows: int, classes: int, cut: str) -> None:
    logits, target = torch.zeros(rows, classes, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    lse, own = columns.columns_forward(logits, target, None)
    assert lse.shape == (classes,)
    assert own.shape == (rows,)
    assert (lse == -torch.inf).all()
    assert columns.columns_backward(logits, target, None, lse, lse, own).shape == (rows, classes)


def test_same_bits(cut: str) -> None:
    given = problem(33, 60, torch.float32, True)
    d_lse, d_own = slopes(33, 60, torch.float32)

    def run() -> tuple[Tensor, Tensor]:
        lse, _ = columns.columns_forward(**given)
        return lse, columns.columns_backward(**given, lse=lse, d_lse=d_lse, d_own=d_own)

    assert all(map(torch.equal, run(), run()))
