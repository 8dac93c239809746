"""The screening of the weight repulsion on every instruction set: its bound bounds, and no pair is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from class_weights import scaled

TYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # as the kernels number them
SIZES = [1, 2, 7, 15, 16, 17, 64, 257, 2048, 5000]


def to_bits(weight):
    """As numpy holds it: halves by their bits."""
    return weight.numpy() if weight.dtype == torch.float32 else weight.view(torch.int16).numpy()


def exact_cosines(weight):
    wide = weight.double()
    norm = wide.norm(dim=1, keepdim=True)
    unit = wide / torch.where(norm > 1e-12, norm, torch.inf)
    return (unit @ unit.T).numpy()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("d", SIZES)
def test_the_bound_bounds(box, d, dtype):
    """|product of the rounded rows - cosine| is within it, for float sums of every order and for the exact cosine."""
    weight = scaled(d, dtype, seed=d)
    exact = exact_cosines(weight)
    for isa in box.instruction_sets():
        unit, step, error, scale = box.units(isa, to_bits(weight), TYPES[dtype])
        product = (unit.astype(np.int64) @ unit.astype(np.int64).T).astype(np.int32)
        rounded = product.astype(np.float32) * step[:, None] * step[None]
        bound = box.bounds(isa, error, d)
        _, cosine = box.screen(isa, to_bits(weight), TYPES[dtype], product, step, error, scale, 2.0)
        assert np.isfinite(rounded).all()
        assert (np.abs(rounded.astype(np.float64) - cosine) <= bound).all(), isa
        assert (np.abs(rounded.astype(np.float64) - exact) <= bound).all(), isa
        lost = unit * step[:, None].astype(np.float64) - weight.double().numpy() * scale[:, None].astype(np.float64)
        assert np.abs(np.linalg.norm(lost, axis=1) - error).max() <= 1e-6 + 1e-5 * error.max()
        assert np.abs(unit).max() <= 127


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("d", SIZES)
def test_no_active_pair_is_lost(box, d, dtype):
    """Thresholds just below the cosines that occur: each such pair survives."""
    weight = scaled(d, dtype, seed=d + 1)
    upper = np.triu(np.ones((len(weight),) * 2, bool), 1)
    for isa in box.instruction_sets():
        unit, step, error, scale = box.units(isa, to_bits(weight), TYPES[dtype])
        product = (unit.astype(np.int64) @ unit.astype(np.int64).T).astype(np.int32)
        arguments = (isa, to_bits(weight), TYPES[dtype], product, step, error, scale)
        _, cosine = box.screen(*arguments, 2.0)
        for threshold in np.unique(np.nextafter(cosine[upper], np.float32(-2)))[::7]:
            survived, _ = box.screen(*arguments, float(threshold))
            lost = (cosine > threshold) & upper & (survived == 0)
            assert not lost.any(), (isa, threshold, np.argwhere(lost)[:3])
            assert not survived[~upper].any()


def test_screening_is_worth_it(box):
    """Of random rows few survive beyond those that are active: the bound is not merely large."""
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 256))).float()
    for isa in box.instruction_sets():
        unit, step, error, scale = box.units(isa, to_bits(weight), 0)
        product = (unit.astype(np.int64) @ unit.astype(np.int64).T).astype(np.int32)
        survived, cosine = box.screen(isa, to_bits(weight), 0, product, step, error, scale, 0.2)
        assert survived.sum() <= 2 * (np.triu(cosine, 1) > 0.15).sum() + 5
        assert box.bounds(isa, error, 256).max() < 0.05


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_without_a_direction(box, dtype):
    """Zero, too short and not finite rows: no step, no error, and a scale that says which."""
    weight = torch.ones(5, 33, dtype=dtype)
    weight[1] = 0
    weight[2] = 1e-20  # 0 as float16
    weight[3, 7] = torch.inf
    weight[4, 8] = torch.nan
    for isa in box.instruction_sets():
        unit, step, error, scale = box.units(isa, to_bits(weight), TYPES[dtype])
        assert scale[0] == pytest.approx(33**-0.5)
        assert list(scale[1:3]) == [0, 0]
        assert np.isnan(scale[3:]).all()
        assert not unit[1:].any()
        assert not step[1:].any()
        assert not error[1:].any()
