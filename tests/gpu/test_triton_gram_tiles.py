"""The tiles of logit-weight repulsion on a GPU, for more pairs than the list has room for."""

from __future__ import annotations

import pytest
import torch
from class_weights import apart, scaled, short, similar
from device import DEVICE
from helpers import normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels.reference import gram as reference
from lt_kernels.triton import cosines as tiles
from lt_kernels.triton import gram, launch, remade


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program takes several turns, as with many classes."""
    for module in (gram, remade, tiles):
        monkeypatch.setattr(module, "processors", lambda like: 2)


def compared(weight: Tensor, threshold: float, form: bool | str) -> tuple[Tensor, ...]:
    """What the forward pass returns, after a comparison of it and of the gradient with the reference in float64."""
    raw, project = form == "raw", form is True
    weight = short(weight, raw).to(DEVICE)
    wide, grad = weight.double(), normal(len(weight), seed=9, dtype=torch.float32).to(DEVICE)
    total, scale, *saved = found = gram.gram_forward(weight, threshold, raw)
    true, true_scale, *again = reference.gram_forward(wide, threshold, raw)
    assert_close(total, true, torch.float32, "Z")
    gradient = gram.gram_backward(weight, threshold, project, scale, total, *saved, grad, raw)
    made = reference.gram_backward(wide, threshold, project, true_scale, true, *again, grad.double(), raw)
    assert_close(gradient, made, weight.dtype, "gradient")
    return found


SIZES = [(257, 17, True, torch.float32, 9), (130, 96, False, torch.float32, 9), (130, 17, "raw", torch.float32, 8)]
SIZES += [(130, 96, True, torch.bfloat16, 8), (257, 17, False, torch.float16, 9), (130, 96, "raw", torch.bfloat16, 9)]


@pytest.mark.parametrize(("classes", "features", "form", "dtype", "generation"), SIZES)
def test_no_room_at_all(
    classes: int,
    features: int,
    form: bool | str,
    dtype: torch.dtype,
    generation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiles of both sizes, whole and not, with rows that have no direction."""
    monkeypatch.setattr(reference, "PAIRS", 1)
    monkeypatch.setattr(launch, "GENERATION", generation)
    monkeypatch.setattr(remade, "STRIP", 256)
    weight = normal(classes, features, seed=1) + 2 * normal(5, features, seed=2)[torch.arange(classes) % 5]
    weight[3], weight[70] = 0, 0
    *_, dense = compared(apart(weight.to(dtype), 0.4, gap=2e-6), 0.4, form)
    assert dense.all()


@pytest.mark.parametrize("form", [True, "raw"])
def test_tiles_fill_the_list(form: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs are candidates, too many, and few of them active: tiles decide, and the list holds the active ones."""
    monkeypatch.setattr(reference, "PAIRS", 2)
    cosine = torch.full((60, 1), 0.7**0.5, dtype=torch.float64)
    cosine[20:27] = 0.72**0.5
    weight = torch.cat((cosine, (1 - cosine.square()).sqrt() * torch.eye(60, dtype=torch.float64)), 1)
    turn, _ = torch.linalg.qr(normal(61, 61, seed=4))
    weight = (weight @ turn).float()
    _, _, first, second, _, count, dense = compared(weight, 0.715, form)
    pairs = {(int(first[k]), int(second[k])) for k in range(int(count))}
    assert pairs == {(i, j) for i in range(20, 27) for j in range(i + 1, 27)}
    assert not dense.any()


def parts(weight: Tensor) -> tuple[Tensor, int]:
    """The parts of the rows as numbers in float64 [PARTS, P, D], and what they are multiplied by."""
    scale = reference.inverse_norm(weight)
    signal = torch.ones(1, dtype=torch.int64, device=weight.device)
    lines = {"scale": scale, "total": None, "grad": None, "RAW": False}
    return tiles.split(weight, signal, 0, lines)["parts"].cpu().double(), int(tiles.LENGTH.value)


@pytest.mark.parametrize("features", [17, 512, 2048])
def test_products_of_parts_are_as_exact_as_float32(features: int) -> None:
    """Three products miss the cosines by at most 4 / 2^24, and by no more than one in float32 does."""
    weight = torch.cat((normal(40, features, seed=1), normal(3, features, seed=2) ** 9)).float()
    weight = torch.cat((weight, 1e-9 * weight[:3], scaled(features, torch.float32, seed=3)[:4])).to(DEVICE)
    (high, low), length = parts(weight)
    made = (high @ high.T + high @ low.T + low @ high.T)[: len(weight), : len(weight)] / length**2
    weight, scale = weight.cpu(), reference.inverse_norm(weight).cpu()[:, None]
    exact, unit = weight.double() * scale.double(), weight * scale
    wrong, of_float32 = ((one - exact @ exact.T).abs() for one in (made, (unit @ unit.T).double()))
    assert wrong.max() <= 4 * 2.0**-24
    assert wrong.max() <= of_float32.max()
    assert not high[:, features:].any()
    assert not low[len(weight) :].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_16_bits_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    weight = normal(9, 30, seed=1).to(dtype).to(DEVICE)
    weight[4, 2] = torch.nan
    (found,), _ = parts(weight)
    assert found[:4, :30].equal(weight[:4].cpu().double())
    assert not found[4].any()


def test_rounded_down() -> None:
    """A float32 number is above the threshold if it is above the threshold rounded down, whichever it is."""
    for threshold in (0.4, 0.25, 1e-50, 0.1, 1 - 2.0**-30):
        near = tiles.rounded_down(threshold)
        following = torch.tensor(near).nextafter(torch.tensor(2.0))
        assert near <= threshold < float(following)
        assert float(torch.tensor(near)) == near


def test_gradients_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients are scaled row by row, so that float16 holds those of tiny and of huge slopes."""
    monkeypatch.setattr(reference, "PAIRS", 1)
    weight = apart(normal(40, 33, seed=1) + 2 * normal(1, 33, seed=2), 0.4, gap=2e-6).float().to(DEVICE)
    total, scale, *saved = gram.gram_forward(weight, 0.4)
    for size in (1e-30, 1e20):
        grad = torch.full((40,), size, device=DEVICE)
        found = gram.gram_backward(weight, 0.4, True, scale, total, *saved, grad)
        true = reference.gram_forward(weight.double(), 0.4)
        made = reference.gram_backward(weight.double(), 0.4, True, true[1], true[0], *true[2:], grad.double())
        assert_close(found / size, made / size, torch.float32)
    assert saved[-1].all()


def test_raw_products_of_long_rows() -> None:
    """The list holds the products; of rows that are 30 long they are 900, which exp cannot hold."""
    weight = 30 * torch.nn.functional.normalize(similar(24, 40, 0.4, torch.float32), dim=1)
    total, _, first, second, value, count, _ = gram.gram_forward(weight.to(DEVICE), 0.4, True)
    assert (total.cpu() - reference.gram_forward(weight.double(), 0.4, True)[0]).abs().max() <= 900 * 1e-6
    pairs = (one[: int(count)].cpu().long() for one in (first, second))
    assert_close(value[: int(count)].cpu(), (weight.double() @ weight.double().T)[tuple(pairs)], torch.float32)
