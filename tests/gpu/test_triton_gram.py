"""The GPU kernels of the logit-weight repulsion against the reference in float64; without a GPU, interpreted."""

from __future__ import annotations

import pytest
import torch
from class_weights import adversarial, apart, apart_or_not, cosines, scaled, short, similar
from device import DEVICE
from helpers import normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.reference import gram as reference
from lt_kernels.triton import cosines as tiles
from lt_kernels.triton import gram, remade
from lt_kernels.triton.launch import recorded

TRITON = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program takes several turns, as with many classes; and the interpreter is spared those that have none."""
    for module in (gram, remade, tiles):
        monkeypatch.setattr(module, "processors", lambda like: 1)


def both(weight: Tensor, threshold: float, form: bool | str = True) -> list[Tensor]:
    """What the forward returns and the gradient, after a comparison of Z, 1 / |w| and gradient with the reference."""
    project, raw = form is True, form == "raw"
    weight = short(weight, raw).to(DEVICE)
    wide, grad = weight.double(), normal(len(weight), seed=9, dtype=torch.float32).to(DEVICE)
    found, true = gram.gram_forward(weight, threshold, raw), reference.gram_forward(wide, threshold, raw)
    assert_close(found[0], true[0], torch.float32 if weight.dtype != torch.float64 else None, "Z")
    assert_close(found[1] / true[1].clamp_min(1e-30), true[1].sign(), found[1].dtype, "1 / |w|")
    (total, scale, *saved), (true_total, true_scale, *again) = found, true
    gradient = gram.gram_backward(weight, threshold, project, scale, total, *saved, grad.to(scale.dtype), raw)
    made = reference.gram_backward(wide, threshold, project, true_scale, true_total, *again, grad.double(), raw)
    length = 1 / true_scale.where(true_scale > 0, 1.0)[:, None]  # so that short rows, of large gradients, do not rule
    assert_close(gradient * length, made * length, weight.dtype, "gradient")
    assert gradient.dtype == weight.dtype
    assert gradient.is_contiguous()
    return [*found, gradient]


def listed(found: list[Tensor] | tuple[Tensor, ...]) -> set[tuple[int, int]]:
    """The pairs of a list; no pair is there twice, and i < j."""
    first, second, count = found[2], found[3], int(found[5])
    pairs = list(zip(first[:count].tolist(), second[:count].tolist(), strict=True))
    assert len(set(pairs)) == count
    assert all(i < j for i, j in pairs)
    return set(pairs)


def above(weight: Tensor, threshold: float) -> set[tuple[int, int]]:
    """The pairs i < j of rows that are closer than the threshold, in float64."""
    return {(i, j) for i, j in (cosines(weight.cpu()) > threshold).triu(1).nonzero().tolist()}


SETTINGS = [(-1.0, True), (0.0, False), (0.2, True), (0.2, False), (0.4, True), (0.99, True), (1.0, True), (2.0, False)]
SETTINGS += [(threshold, "raw") for threshold in (-1.0, 0.0, 0.2, 0.4, 0.99, 1.0)]


@pytest.mark.parametrize("dtype", [*TRITON, torch.float64])
@pytest.mark.parametrize(("threshold", "project"), SETTINGS)
def test_reference(threshold: float, project: bool | str, dtype: torch.dtype) -> None:
    weight = similar(24, 40, threshold, dtype)
    found = both(weight, threshold, project)
    if dtype != torch.float64 and 0 < threshold < 1:
        assert listed(found) == above(weight, threshold)
        assert not found[6].any()


@pytest.mark.parametrize("features", [1, 7, 16, 129, 600])
@pytest.mark.parametrize("classes", [1, 2, 33])
def test_sizes(classes: int, features: int) -> None:
    weight = similar(classes, features, 0.4, torch.float32, gap=2e-6) if features > 1 else normal(classes, 1, seed=1)
    both(weight.float(), 0.4, features > 1)  # one feature: no direction but the own, and all cancels


@pytest.mark.parametrize("classes", [128, 257, 1025, 2100])
def test_every_tile(classes: int) -> None:
    """Tiles of one, two and three rows of tiles; each pair once, wherever it lies."""
    weight = similar(classes, 12, 0.97, torch.float32, gap=2e-6).to(DEVICE)
    total, _, *saved = found = gram.gram_forward(weight, 0.97)
    assert listed(found) == above(weight, 0.97)
    assert_close(total, reference.gram_forward(weight.double(), 0.97)[0], torch.float32)
    assert not saved[4].any()


def clustered(classes: int, features: int, groups: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows in groups of neighbours that are close to each other."""
    group = torch.arange(classes) * groups // classes
    weight = (4 * normal(groups, features, seed=1)[group] + normal(classes, features, seed=2)).to(dtype)
    return apart(weight, 0.8, gap=2e-6)


NO_ROOM = [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)]
NO_ROOM += [(torch.float32, "raw"), (torch.float16, "raw")]


@pytest.mark.parametrize(("dtype", "project"), NO_ROOM)
def test_no_room(dtype: torch.dtype, project: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than the list has room for: tiles are made again, forward and backward."""
    monkeypatch.setattr(reference, "PAIRS", 2)
    *_, dense, gradient = both(clustered(70, 36, 3, dtype), 0.8, project)
    assert dense.all()
    assert gradient.any()


@pytest.mark.parametrize("form", [True, "raw"])
@pytest.mark.parametrize("features", [33, 70])
def test_no_room_for_the_pairs(features: int, form: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates fit, 16 to an item, but not the pairs: Z is from the list, the gradient is not."""
    monkeypatch.setattr(reference, "PAIRS", 4)
    *_, count, dense, _ = both(clustered(48, features, 3), 0.8, form)
    assert int(count) > gram._room(48)
    assert dense.all()


def test_only_marked_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rows of tiles only those with candidates are marked, and the others are not needed."""
    monkeypatch.setattr(reference, "TILE", 256)
    monkeypatch.setattr(reference, "PAIRS", 1)
    weight = normal(520, 40, seed=3, dtype=torch.float32)
    weight[300:310] = weight[300] + 0.01 * weight[310:320]
    *_, dense, _ = both(apart(weight, 0.9), 0.9)
    assert dense.nonzero().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("dtype", TRITON)
@pytest.mark.parametrize("features", [1, 17, 64, 2048])
def test_the_bound_bounds(features: int, dtype: torch.dtype) -> None:
    """The products of the rounded rows are within it of the cosines, for rows that round as badly as can be."""
    weight = scaled(features, dtype, seed=features)
    zeros = {"sums": torch.ones(len(weight), dtype=torch.int64), "degree": torch.ones(len(weight), dtype=torch.int32)}
    zeros |= {name: torch.ones(1, dtype=torch.int64) for name in ("found", "count")}
    zeros = {name: value.to(DEVICE) for name, value in zeros.items()}
    _, unit, step, error = (value.cpu().double() for value in gram._units(weight.to(DEVICE), zeros))
    assert not any(value.any() for value in zeros.values())
    true = torch.nn.functional.normalize(weight.double(), dim=1, eps=1e-12)
    assert unit.abs().max() == 127
    rounded = unit * step[:, None]
    bound = error[:, None] + error + error[:, None] * error + (unit.shape[1] + 16) * 2.0**-22
    assert ((rounded @ rounded.T - true @ true.T).abs() <= bound).all()
    assert not rounded[:, features:].any()
    lost = torch.linalg.vector_norm(rounded[:, :features] - true, dim=1)
    assert ((lost - error).abs() <= 1e-6 + 1e-5 * error).all()


@pytest.mark.parametrize("features", [17, 64, 300])
def test_no_active_pair_is_lost(features: int) -> None:
    """Thresholds right below cosines that occur, and right at them: what is above is listed, whatever the rounding."""
    weight = scaled(features, torch.float32, seed=features + 1)[::2].to(DEVICE)
    every = gram.gram_forward(weight, 1e-3)
    value = every[4][: int(every[5])].sort().values
    pairs = {(int(every[2][k]), int(every[3][k])): float(every[4][k]) for k in range(int(every[5]))}
    for cosine in value[:: max(1, len(value) // 3)].tolist():
        below = float(torch.tensor(cosine).nextafter(torch.tensor(-1.0)))
        for threshold in (below, cosine):
            if 0 < threshold < 1:
                active = {pair for pair, s in pairs.items() if s > threshold}
                assert listed(gram.gram_forward(weight, threshold)) == active


def test_screening_is_worth_it() -> None:
    """Of random rows few survive beyond those that are active: the bound is not merely large."""
    weight = normal(200, 256, seed=4, dtype=torch.float32).to(DEVICE)
    item, sums = (torch.empty(2000, dtype=torch.int64, device=DEVICE) for _ in range(2))
    degree, found, count = torch.empty(200, dtype=torch.int32, device=DEVICE), sums[:1], sums[1:2].clone()
    units = gram._units(weight, {"sums": sums[2:202], "degree": degree, "found": found, "count": count})
    gram._screen(*units[1:], item, found, 0.2)
    survivors = sum((value & 65535).bit_count() for value in item[: int(found)].tolist())
    assert 0 < survivors <= 2 * len(above(weight, 0.16)) + 5


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.9999])
def test_adversarial(threshold: float) -> None:
    """Parallel, opposite and zero rows, extreme lengths, tiny entries, and cosines close to the threshold."""
    weight = apart_or_not(adversarial(64), threshold)
    both(weight[::3] if threshold < 0.1 else weight[::2], threshold)


def test_duplicates() -> None:
    """Equal rows have a cosine that float32 may put above 1; the diagonal stays 1."""
    weight = normal(8, 50, seed=5, dtype=torch.float32).repeat(3, 1)
    for threshold in (0.9, 1 - 1e-5):
        total, *_ = both(weight, threshold)
        assert_close(total.cpu(), torch.full((24,), 23 + torch.e + 2 * (torch.e - 1)))


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")  # the interpreter's, of a square that is infinite
def test_lengths() -> None:
    """Rows too short or too long for their length in float32 are as in the reference in float32; none spoils others."""
    weight = similar(24, 40, 0.4, torch.float32)
    weight[3], weight[7], weight[11] = weight[3] * 1e17, weight[7] * 1e-11, weight[11] * 1e-40
    weight[15, 2], weight[19, 3], weight[21] = torch.nan, -torch.inf, weight[21] * 1e30
    weight = weight.to(DEVICE)
    total, scale, *saved = gram.gram_forward(weight, 0.4)
    true, true_scale, *_ = reference.gram_forward(weight, 0.4)
    assert scale.isnan().nonzero().flatten().tolist() == [15, 19, 21]
    assert scale[11] == 0
    assert_close(scale, true_scale)
    assert_close(total, true)
    grad = torch.ones(24, device=DEVICE)
    gradient = gram.gram_backward(weight, 0.4, True, scale, total, *saved, grad)
    rest = [row for row in range(24) if row not in (15, 19, 21)]
    true = reference.gram_forward(weight[rest].double(), 0.4)
    true_total = true[0] + 3  # the rows that are left out are inactive
    made = reference.gram_backward(
        weight[rest].double(), 0.4, True, true[1], true_total, *true[2:], grad[rest].double()
    )
    assert gradient[[15, 19, 21]].isnan().all()
    assert_close(gradient[rest] / true[1][:, None].clamp_min(1), made / true[1][:, None].clamp_min(1), torch.float32)


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # the interpreter's
def test_rows_that_are_not_finite_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again, tiles keep such rows to themselves too."""
    monkeypatch.setattr(reference, "PAIRS", 1)
    weight = clustered(40, 30, 4).to(DEVICE)
    weight[5, 3], weight[9, 0] = torch.nan, torch.inf
    total, scale, *saved = gram.gram_forward(weight, 0.8)
    gradient = gram.gram_backward(weight, 0.8, True, scale, total, *saved, torch.ones(40, device=DEVICE))
    assert total.isnan().nonzero().flatten().tolist() == [5, 9]
    assert gradient.isnan().any(1).nonzero().flatten().tolist() == [5, 9]


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # the interpreter's
def test_grad_that_is_not_a_number() -> None:
    """It shows in the rows that it belongs to or that are close to one, and nowhere else."""
    weight = clustered(30, 30, 3).to(DEVICE)
    total, scale, *saved = gram.gram_forward(weight, 0.8)
    grad = torch.ones(30, device=DEVICE)
    grad[4] = torch.nan
    gradient = gram.gram_backward(weight, 0.8, True, scale, total, *saved, grad)
    close = (cosines(weight.cpu())[4] > 0.8).nonzero().flatten().tolist()
    assert gradient.isnan().any(1).nonzero().flatten().tolist() == close
    assert not gram.gram_backward(weight, 0.8, True, scale, total, *saved, 0 * torch.ones_like(grad)).any()


@pytest.mark.parametrize("room", [48, 1])
def test_same_bits(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs come to their work in another order, and the list is in another one: the results are the same."""
    monkeypatch.setattr(reference, "PAIRS", room)
    monkeypatch.setattr(gram, "ITEMS", 1)
    weight, grad = clustered(30, 20, 6).to(DEVICE), normal(30, seed=9, dtype=torch.float32).to(DEVICE)
    results, lists = [], []
    for programs in (1, 3):
        for module in (gram, remade, tiles):
            monkeypatch.setattr(module, "processors", lambda like, programs=programs: programs)
        total, scale, *saved = gram.gram_forward(weight, 0.8)
        results.append((total, scale, gram.gram_backward(weight, 0.8, True, scale, total, *saved, grad)))
        lists.append(saved[0][: int(saved[3])])
    assert all(map(torch.equal, *results))
    if room > 1 and DEVICE == "cpu":
        assert not torch.equal(lists[0], lists[1])


def test_list_of_another_wing() -> None:
    """What the reference's forward saved, no list and every tile to be made again, serves."""
    weight, grad = similar(50, 20, 0.4, torch.float32).to(DEVICE), normal(50, seed=9, dtype=torch.float32).to(DEVICE)
    total, scale, *saved = reference.gram_forward(weight, 0.4)
    found = gram.gram_backward(weight, 0.4, False, scale, total, *saved, grad)
    assert_close(found, reference.gram_backward(weight, 0.4, False, scale, total, *saved, grad))


@pytest.mark.parametrize("part", ["every other row", "columns", "transposed"])
def test_layouts(part: str) -> None:
    wide = normal(40, 30, seed=6, dtype=torch.float32)
    weight = {"every other row": wide[::2], "columns": wide[:, 3:19], "transposed": wide.T}[part]
    near = apart(weight, 0.2)
    view = weight.copy_(near) if part != "transposed" else near.T.contiguous().T
    assert not view.is_contiguous()
    both(view, 0.2)


def test_launches() -> None:
    """Nothing is read back: what is launched does not depend on what the tensors hold."""
    forward, backward = ["unit", "screen", "split", "verify", "sum", "finish"], ["fill", "gather", "split", "push"]
    names = []
    for threshold in (0.4, 1.0):
        with recorded() as calls:
            weight = torch.empty(5000, 300, device="meta")
            total, scale, *saved = gram.gram_forward(weight, threshold)
            gram.gram_backward(weight, threshold, True, scale, total, *saved, total)
        names.append([call.kernel.fn.__name__.removesuffix("_kernel") for call in calls])
    assert names == [[*forward, *backward], []]
